"""The command `nerf`: one file a verb, each with the dataclass of its arguments and a function `main`."""
