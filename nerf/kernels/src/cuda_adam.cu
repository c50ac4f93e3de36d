// Adam on the GPU (adam.h has the equation): one thread per row.
#include "adam.h"
#include "cuda_device.h"

NERF_FN unsigned short half_of(float x) { return (unsigned short)(halves_of(x, 0.0f) & 0xffffu); }

NERF_FN AdamDesc of_this_step(const AdamDesc& args) {
  AdamDesc a = args;
  if (a.rates) a.lr = a.rates[0], a.correction1 = a.rates[1], a.correction2 = a.rates[2];
  return a;
}

// Rows of four, which a hash table has: 16-byte accesses.
KERNEL(adam_rows_of_four, AdamDesc, 256) {
  const AdamDesc a = of_this_step(args);
  const long long r = (long long)block_index() * block_size() + thread_index();
  if (r >= args.n_rows) return;
  const float4 grad = ((const float4*)args.grad)[r];
  if (args.skip_zero_rows && grad.x == 0.0f && grad.y == 0.0f && grad.z == 0.0f && grad.w == 0.0f) return;
  float4 p = ((const float4*)args.param)[r], m = ((const float4*)args.m)[r], v = ((const float4*)args.v)[r];
  const float decay = adam_decay(a, r);
  p.x = adam_element(a, decay, grad.x, p.x, &m.x, &v.x);
  p.y = adam_element(a, decay, grad.y, p.y, &m.y, &v.y);
  p.z = adam_element(a, decay, grad.z, p.z, &m.z, &v.z);
  p.w = adam_element(a, decay, grad.w, p.w, &m.w, &v.w);
  ((float4*)args.param)[r] = p;
  ((float4*)args.m)[r] = m;
  ((float4*)args.v)[r] = v;
  if (args.zero_grad) ((float4*)args.grad)[r] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (args.half_copy) ((uint2*)args.half_copy)[r] = make_uint2(halves_of(p.x, p.y), halves_of(p.z, p.w));
}

KERNEL(adam_rows, AdamDesc, 256) {
  const AdamDesc a = of_this_step(args);
  const long long r = (long long)block_index() * block_size() + thread_index();
  if (r >= args.n_rows) return;
  const int n = args.n_columns;
  const size_t at = (size_t)r * n;
  bool any = !args.skip_zero_rows;
  for (int c = 0; c < n; ++c) any |= args.grad[at + c] != 0.0f;
  if (!any) return;
  const float decay = adam_decay(a, r);
  for (int c = 0; c < n; ++c) {
    args.param[at + c] = adam_element(a, decay, args.grad[at + c], args.param[at + c], args.m + at + c, args.v + at + c);
    if (args.zero_grad) args.grad[at + c] = 0.0f;
    if (args.half_copy) args.half_copy[at + c] = half_of(args.param[at + c]);
  }
}

// What changes with every step, for launches that are recorded once and replayed.
struct NumbersArgs {
  float* rates;  // [4]
  u32* step_at;  // [1]
  float learning_rate, correction1, correction2, surface_weight;
  u32 step;
};

KERNEL(set_numbers, NumbersArgs, 32) {
  if (thread_index() != 0) return;
  args.rates[0] = args.learning_rate, args.rates[1] = args.correction1, args.rates[2] = args.correction2;
  args.rates[3] = args.surface_weight;
  *args.step_at = args.step;
}
