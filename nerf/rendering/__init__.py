"""Rays to colours: marching, the fused op and its compositing, losses and metrics on rays, the trained `Model`."""
