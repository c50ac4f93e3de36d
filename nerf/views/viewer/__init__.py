"""The interactive viewer, `nerf view` and `--view`: a page on this machine (served by viser) in which a model is walked
through, edited, filmed and exported, also while it is being trained.

Without viser: what a client sees next (`pace`, `viewport`), whose tile is rendered when (`loop`, `sharing`), edits
(`regions`, `edits`, `edited`), camera paths (`key_views`). With it: `server` and the panels.
"""
