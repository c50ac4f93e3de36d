// What the forward pass remembers of the samples that it kept, for the backward pass: a buffer of fixed size, filled in the
// order in which warps get there. The samples of one ray are linked from the last to the first, which is the order in which
// the backward pass wants them.
#pragma once
#include "cuda_device.h"

struct KeptSamples {
  int* n;                  // how many there were, also those without room
  int capacity;
  int* last_samples;       // [n_rays] last sample of each ray, -1: none
  float2* totals;          // [n_rays] sums of the weights and of weight * t_mid
  float4* intervals;       // [capacity] t_mid, dt, weight, transmittance behind it
  float4* rgb_sigmas;      // [capacity] red, green, blue, sigma
  float4* unit_positions;  // [capacity] in x, y, z
  int2* links;             // [capacity] its ray; the sample before it on the ray, -1: none
  void* features;          // [capacity, ENCODED] in the networks' precision
};
