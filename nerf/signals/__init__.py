"""Signals: images, sounds, videos as coordinates and values, and the fields that are fitted to them.

`record` is what every signal is; `image`, `audio` and `video` read and write files; `fields` are the networks;
`derivatives` are theirs. The loop that fits one to the other is `nerf.signals.fitting`.
"""
