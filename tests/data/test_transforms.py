from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.errors import TransformError
from data.keys import RowRandom
from data.sampling import kept_randomness
from data.transforms import build_transforms

CLASSIC = [
    {"Resize": {"size": [12, 12], "interpolation": "bicubic"}},
    {"Pad": {"padding": 2, "padding_mode": "edge"}},
    {"RandomCrop": {"size": 12}},
    "RandomHorizontalFlip",
    "ToTensor",
    {"Normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1]}},
    {"RandomErasing": {"probability": 1.0}},
]


def test_the_classic_recipe() -> None:
    built = build_transforms(CLASSIC, 3)
    with kept_randomness():
        image = built.sample(Image.new("RGB", (20, 30), (255, 0, 51)))
        again = pickle.loads(pickle.dumps(built)).sample(torch.zeros(3, 9, 9, dtype=torch.uint8))
    assert image.dtype == again.dtype == torch.uint8
    assert tuple(image.shape) == tuple(again.shape) == (3, 12, 12)
    draws = torch.tensor([built.draw(RowRandom(0, 0, row), (12, 12)) for row in range(4)])
    assert tuple(draws.shape) == (4, built.draws) == (4, 4)
    floats = built.device(image.expand(4, -1, -1, -1), draws)
    assert floats.dtype == torch.float32
    erased = floats == 0  # the fill, in normalised units
    assert erased.any(dim=(1, 2, 3)).all()
    corner = torch.stack([(torch.tensor([1, 0, 0.2]) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.25, 0.2, 0.1])])
    kept = floats.permute(0, 2, 3, 1)[~erased.permute(0, 2, 3, 1).all(-1)]
    assert torch.allclose(kept, corner.expand_as(kept))
    assert built.spec[3] == "RandomHorizontalFlip"
    assert built.spec[1] == {"Pad": {"padding": 2, "padding_mode": "edge"}}


def test_nothing_at_all_still_scales() -> None:
    built = build_transforms([], 1)
    assert built.draws == 0
    assert built.device(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.empty(1, 0)).max() == 1
    assert build_transforms([{"AutoAugment": {"policy": "cifar10"}}, {"CenterCrop": None}][:1], 3).samplewise


def test_ones_own_by_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_b.py").write_text(
        "class Invert:\n    def __call__(self, image): return 255 - image\n"
        "class Scale:\n    draws = 1\n    def __init__(self, by=1.0): self.by = by\n"
        "    def draw(self, rng, size): return [rng.uniform(0, self.by)]\n"
        "    def __call__(self, images, draws): return images * draws[:, :, None, None]\n"
        "class Wrong(Scale):\n    draws = 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        built = build_transforms(["mine_b.Invert", {"mine_b.Scale": {"by": 2.0}}, "RandomErasing"], 1)
        image = built.sample(torch.zeros(1, 5, 5, dtype=torch.uint8))
        assert image.min() == 255
        draws = torch.tensor([built.draw(RowRandom(1, 1, 1), (5, 5))])
        assert draws.shape == (1, 5)
        assert built.device(image[None], draws).max() == draws[0, 0]
        with pytest.raises(TransformError, match=r"Wrong\.draw gave 1 number, its draws is 2"):
            build_transforms(["mine_b.Wrong"], 1).draw(RowRandom(1, 1, 1), (5, 5))
        with pytest.raises(TransformError, match=r"module mine_b has no class 'Inverse'\. Did you mean Invert"):
            build_transforms(["mine_b.Inverse"], 1)
    finally:
        sys.modules.pop("mine_b", None)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("RandomCorp", r"^transforms\[0\]: there is no transform 'RandomCorp'\. Did you mean RandomCrop\?$"),
        ("random_horizontal_flip", r"Did you mean RandomHorizontalFlip\?"),
        ({"RandomCrop": {"sise": 3}}, r"RandomCrop has no argument 'sise'; legal are size, .*Did you mean size\?"),
        ("RandomCrop", r"RandomCrop\(\): .*missing 1 required positional argument: 'size'"),
        ({"RandomCrop": 28}, r"its arguments are a mapping, as in \{RandomCrop: \{size: 28\}\}, not 28"),
        ({"Resize": {"size": 8, "interpolation": "bicubik"}}, r"'bicubik': legal are .*Did you mean bicubic\?"),
        ({"Pad": {"padding": 1, "padding_mode": "edgy"}}, "Pad\\(padding=1, padding_mode='edgy'\\)"),
        ({"RandomErasing": {"p": 0.5}}, "has no argument 'p'; legal are probability, sl, sh, r1, mean"),
        ({"RandomErasing": {"probability": 2}}, "probability 2 is outside"),
        ({"Normalize": {"mean": [0.5, 0.5], "std": [1, 1]}}, "mean has 2 values for 3 channels"),
        ({"Normalize": {"mean": 0.5, "std": 0}}, "must be above 0"),
        ({"Normalize": {"mean": [0.5], "std": [1, 1, 1]}}, "1 value of mean, but 3 of std"),
        ("ToDtype", "ToDtype is not needed: images are uint8"),
        ("MixUp", "MixUp can't be written in a config"),
        ("no.such.module.X", r"No module named 'no'; is its folder on the Python path\?"),
        ({"A": {}, "B": {}}, "is neither a name nor one name with its arguments"),
        (".Foo", r"\[0\]: \.Foo is no dotted path: write package\.module\.Thing$"),
        ("a..b", r"a\.\.b is no dotted path"),
        ("builtins.dict", r"builtins\.dict is neither a class whose instances can be called with an image"),
        ({"os.system": {"command": "true"}}, r"os\.system is neither a class .* nor a function that gives one$"),
        ({"subprocess.Popen": {"args": "true"}}, r"subprocess\.Popen is neither a class"),
        ("builtins.type", r"builtins\.type\(\): "),
        ("os.getcwdb", r"os\.getcwdb is neither"),
        ("tempfile.gettempdir", r"tempfile\.gettempdir gave a str, which can't be called with an image"),
    ],
)
def test_refusals(spec: object, told: str) -> None:
    with pytest.raises(TransformError, match=told):
        build_transforms([spec], 3)  # type: ignore[list-item]


def test_dotted_names_that_are_not_allowed_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "mine_c.py").write_text(
        f"open({str(canary)!r}, 'w').close()\nclass Same:\n    def __call__(self, image): return image\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for allowed in (False, ["mine_c", "Same", "mine_c.Same.x"], []):
        with pytest.raises(TransformError, match=r"\[1\]: mine_c\.Same is code of somebody's own, which is not import"):
            build_transforms(["RandomHorizontalFlip", "mine_c.Same"], 3, allow_dotted=allowed)
    assert not canary.exists()
    try:
        build_transforms(["mine_c.Same"], 3, allow_dotted=["mine_c.Same"])
    finally:
        sys.modules.pop("mine_c", None)
    assert canary.exists()


def test_places_and_all_problems_at_once() -> None:
    with pytest.raises(TransformError) as caught:
        build_transforms(["Nonsense", "ToTensor", "RandomHorizontalFlip", "ToTensor"], 3, "data.train_transforms")
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("data.train_transforms[0]: there is no transform 'Nonsense'; legal are torchvision's")
    assert (
        "data.train_transforms[2]: RandomHorizontalFlip works on one image at a time: put it before ToTensor" in second
    )
    assert "data.train_transforms[3]: ToTensor stands behind the border it marks" in third


def test_results_that_do_not_fit() -> None:
    built = build_transforms([{"Grayscale": {"num_output_channels": 1}}], 3)
    with pytest.raises(TransformError, match=r"gave 1 channel, data\.channels is 3"):
        built.sample(torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(TransformError, match=r"gave torch\.float32 \[3, 4, 4\] instead of uint8"):
        build_transforms([], 3).sample(torch.zeros(3, 4, 4))
    named = build_transforms([], 3, "data.eval_transforms")
    with pytest.raises(TransformError, match=r"^data\.eval_transforms: the loader's part gave torch\.float32"):
        pickle.loads(pickle.dumps(named)).sample(torch.zeros(3, 4, 4))
