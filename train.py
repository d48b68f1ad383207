#!/usr/bin/env python3
"""What every rank runs, under launch.py, torchrun, srun or alone: `python train.py CONFIG`. Read it top to bottom."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

from rankrun.beat import Beat, Phase
from rankrun.config import Settings
from rankrun.errors import ExitCode
from rankrun.training.log import Log
from rankrun.training.notice import Notice
from rankrun.training.opening import Options, open_run, read_options, read_settings
from rankrun.training.reporting import report_errors
from rankrun.world import World


def main() -> int:
    with report_errors(os.environ, debug="--debug" in sys.argv or os.environ.get("RANKRUN_DEBUG") == "1"):
        notice = Notice.install(interrupts="RANKRUN_RUN_DIR" not in os.environ)
        options = read_options(sys.argv[1:])
        world = World.from_env(os.environ)
        settings = read_settings(options, os.environ)  # a mistake in the config ends here, before torch is loaded
        return train(options, world, settings, notice)


def train(options: Options, world: World, settings: Settings, notice: Notice) -> ExitCode:
    import torch

    import models
    from data import Batch, build_loader, build_transforms, open_dataset, prepare
    from rankrun.training.checkpoint import Checkpoints, describe
    from rankrun.training.device import choose_device, settle
    from rankrun.training.evaluation import evaluate
    from rankrun.training.journal import Journal
    from rankrun.training.optimiser import build_optimiser, set_learning_rate
    from rankrun.training.process_group import process_group
    from rankrun.training.schedule import learning_rates
    from rankrun.training.step import Rehearsal, distribute, gradients_wait, seed_micro_batch, share_of_loss
    from rankrun.training.supported import one_label_each

    log = Log(world.rank)
    device = choose_device(settings.train.device, world)
    settle(device, settings.train.threads, os.environ)
    with Beat.open(os.environ.get("RANKRUN_BEAT")) as beat, ExitStack() as ways_out:
        group = ways_out.enter_context(process_group(world, device, rendezvous=options.runs / ".rendezvous"))

        # Data: every rank opens its part, and all make sure that it is the same data.
        data, ranks = settings.data, {"rank": group.rank, "world_size": group.world_size}
        reading = data.reading() | {"seed": settings.seed, "cache": options.runs / ".index"} | ranks
        loading = data.model_dump(include={"workers", "worker_start"}) | {"pin_memory": device.type == "cuda"} | ranks

        def open_part(source: Any, transforms: str) -> Any:
            built = build_transforms(getattr(data, transforms), data.channels, name=f"data.{transforms}")
            return one_label_each(open_dataset(source, transform=built, **reading))

        train_set = group.zero_first(lambda: open_part(data.train, "train_transforms"))
        facts = prepare(train_set, gather=group.gather, **ranks)
        loading |= settings.train.model_dump(include={"global_batch", "micro_batch"})
        loader = group.together(lambda: build_loader(train_set, epochs=settings.train.epochs, **loading))
        if data.val is not None:
            reading |= {"classes": train_set.meta.shared_classes, "tail": "mask", "order": "row", "exclude": None}
            val_set = group.zero_first(lambda: open_part(data.val, "eval_transforms"))
            facts["val"] = prepare(val_set, gather=group.gather, **ranks)
            loading |= {"global_batch": settings.eval.global_batch or settings.train.global_batch, "shuffle": False}
            val_loader = group.together(lambda: build_loader(val_set, **loading))
            trial = build_loader(val_set, **loading | {"workers": 0}).epoch(0)
            group.together(lambda: next(trial))  # a mistake in eval_transforms shows now, not in an hour

        # Model, optimiser, learning rate: the seed is the only source of the weights.
        torch.manual_seed(settings.seed)
        arguments = settings.model.model_dump(include={"name", "init", "zero_init_last_norm"}) | settings.model.args
        arguments |= {"num_classes": len(facts["classes"]), "in_channels": data.channels}
        model = group.together(lambda: models.build(**arguments)).to(device)
        criterion = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=settings.loss.label_smoothing)
        optimiser = build_optimiser(model, settings.optim)
        rate = learning_rates(settings, loader.steps_per_epoch)

        # The run folder, and from it the latest whole checkpoint, to the bit; or a start from nothing.
        run = ways_out.enter_context(open_run(options, settings, os.environ, group, sys.argv))
        log.say(world.note, *run.notes, *train_set.told)
        if run.finished:
            return ExitCode.DONE
        checkpoints = Checkpoints(run, group, log, beat, keep=settings.checkpoint.keep)
        about = describe(settings, facts, device, decoder=train_set.decoder.name)
        progress = checkpoints.resume(model, optimiser, about["frozen"], allow_change=options.allow_change)
        network = distribute(model, group, device)
        journal = Journal(run, group, log, beat, settings, loader, train_set.meta.place, done=progress.step)
        journal.begin(model, device, facts)
        rehearsal = Rehearsal(network)
        metrics, leaving, part = {}, None, 0  # part: this rank's micro-batches of the step so far

        def loss_of(batch: Batch) -> torch.Tensor:
            logits = network(train_set.transform.device(batch.images, batch.draws))
            step_weight = loader.step_weight(progress.position)
            return share_of_loss(criterion(logits, batch.labels), batch.weights, step_weight, group.world_size)

        while leaving is None:
            # Between epochs, also when the run goes on from there: evaluate the weights that were saved.
            if data.val is not None and progress.wants_evaluation(settings):
                tick = partial(beat.write, progress.step, phase=Phase.EVALUATE)
                metrics = evaluate(model, val_loader, val_set.transform.device, group, device, tick)
                journal.evaluated(progress, metrics)
                checkpoints.note_best(progress, metrics)
            if progress.is_done(settings):
                journal.finish(progress, metrics, model, optimiser)
                return ExitCode.DONE

            # An epoch, from the position where it was left. A batch is one micro-batch of this rank.
            model.train()
            beat.write(progress.step, progress.position, Phase.START)
            for batch in journal.meter.waiting(loader.epoch(progress.epoch, progress.position, progress.loader)):
                beat.write(progress.step, progress.position + part, Phase.STEP)
                batch = batch.to(device, non_blocking=True)
                rehearsal.once(lambda batch=batch: loss_of(batch))
                is_last = batch.state_after is not None  # of this step
                seed_micro_batch(settings.seed, progress.step, group.rank, part, device)
                with gradients_wait(network, is_last):
                    loss = loss_of(batch)
                    loss.backward()
                journal.add(batch, loss)
                part += 1
                if not is_last:
                    continue
                set_learning_rate(optimiser, rate(progress.step))
                optimiser.step()
                optimiser.zero_grad()
                journal.step(progress, optimiser.param_groups[0]["lr"])
                progress.advance(batch.state_after)
                part, leaving = 0, notice.agreed(group)
                if progress.position < loader.cut and (leaving or progress.wants_saving(settings)):
                    journal.settle(progress)
                    checkpoints.save(progress, model, optimiser, about, must=leaving is not None)
                    if leaving:
                        return leaving

            # The epoch's end: every row of its order was served once, or the run stops here.
            journal.check_epoch(progress)
            progress.next_epoch()
            checkpoints.save(progress, model, optimiser, about, must=bool(leaving) or progress.is_done(settings))
        return leaving


if __name__ == "__main__":
    sys.exit(main())
