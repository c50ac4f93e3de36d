// Adam (Kingma and Ba 2015) over rows; rows whose gradient is all zero are left untouched, moments included, when asked:
// a hash table is mostly untouched by one batch, and its moments must not decay while nothing is learnt about a row.
#pragma once
#include "common.h"

struct AdamDesc {
  float *param, *grad, *m, *v;
  unsigned short* half_copy;  // half precision, refreshed with the parameters; null: none
  long long n_rows;
  int n_columns;
  int skip_zero_rows, zero_grad, n_threads;
  float lr, beta1, beta2, eps;
  float correction1, correction2;  // 1 - beta^step
  float weight_decay;              // L2, added to the gradient
  const float* rates;              // [3] lr and corrections of this step, where they are not known at launch (GPU); or null
};

NERF_FN float adam_element(const AdamDesc& a, float g, float p, float* m, float* v) {
  g += a.weight_decay * p;
  *m = a.beta1 * *m + (1.0f - a.beta1) * g;
  *v = a.beta2 * *v + (1.0f - a.beta2) * g * g;
  return p - a.lr / a.correction1 * *m / (f_sqrt(*v / a.correction2) + a.eps);
}
