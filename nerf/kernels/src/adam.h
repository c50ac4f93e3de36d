// Adam (Kingma and Ba 2015) over rows, with decoupled weight decay (Loshchilov and Hutter 2019). When asked, rows whose
// gradient is all zero are left untouched, moments included: a hash table is mostly untouched by one batch, and its moments
// must not decay while nothing is learnt about a row.
#pragma once
#include "common.h"

struct AdamDesc {
  float *param, *grad, *m, *v;
  unsigned short* half_copy;  // half precision, refreshed with the parameters; null: none
  long long n_rows;
  long long decay_from;       // rows before this one do not lose by weight decay
  int n_columns;
  int skip_zero_rows, zero_grad, n_threads;
  float lr, beta1, beta2, eps;
  float correction1, correction2;  // 1 - beta^step
  float weight_decay;              // of the learning rate: what a parameter loses of itself in a step
  const float* rates;              // [3] lr and corrections of this step, where they are not known at launch (GPU); or null
};

NERF_FN float adam_decay(const AdamDesc& a, long long row) { return row >= a.decay_from ? a.lr * a.weight_decay : 0.0f; }

NERF_FN float adam_element(const AdamDesc& a, float decay, float g, float p, float* m, float* v) {
  *m = a.beta1 * *m + (1.0f - a.beta1) * g;
  *v = a.beta2 * *v + (1.0f - a.beta2) * g * g;
  return p * (1.0f - decay) - a.lr / a.correction1 * *m / (f_sqrt(*v / a.correction2) + a.eps);
}
