"""The tabs of the page: each builds its controls with viser and hands what is done with them to the logic."""
