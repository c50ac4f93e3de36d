// The default loss of a training batch, and its backward pass as far as the samples' logits, in one kernel: one thread a ray.
// See photo.h for the equations.
#include "cuda_composite.h"
#include "photo.h"

struct PhotoArgs {
  CompositeArgs composite;  // without the gradients of outputs, which are found here
  const float *colors, *opacities, *second_moments;
  const float *targets, *backgrounds;     // [n, 3]
  const float* used;                      // [n] weights of the rays; null: 1
  const long long* places;                // [n] of the rays in the error map
  float photo_weight, surface_weight, delta;
  const float* rates;                     // [4], whose last one is read instead of the surface's weight; or null
  float* errors;                          // [n] squared errors
  float* loss;                            // [1] added to
  float *error_sums, *error_counts;       // the error map, added to
};

KERNEL(photo_backward, PhotoArgs, 128) {
  const int i = block_index() * block_size() + thread_index(), n = args.composite.n_rays;
  float largest = 0.0f, loss = 0.0f;
  if (i < n) {
    const float used = args.used ? args.used[i] : 1.0f, mean = used / (3.0f * (float)n);
    PhotoWeights weights;
    weights.photo = mean * args.photo_weight;
    weights.surface = mean * (args.rates ? args.rates[3] : args.surface_weight);
    weights.delta = args.delta;
    RayGrads g = {};
    float error;
    loss = photo_loss(args.colors + 3 * i, args.opacities[i], args.second_moments[i], args.targets + 3 * i,
                      args.backgrounds + 3 * i, weights, g, &error);
    error *= used;
    args.errors[i] = error;
    atomic_add(args.error_sums + args.places[i], error);
    atomic_add(args.error_counts + args.places[i], 1.0f);
    largest = composite_ray_backward(args.composite, i, g);
  }
  for (int step = 16; step > 0; step >>= 1) loss += shuffle_all(loss, lane_index() ^ step);
  if (lane_index() == 0) atomic_add(args.loss, loss);
  note_largest_all(largest, args.composite.largest_bits);
}
