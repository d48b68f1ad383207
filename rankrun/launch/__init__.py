"""The launcher. `rankrun.launch.cli.main` is the command line; nothing here is imported until a verb needs it."""
