// What describes a radiance field to native code: plain pointers and numbers, the same struct on every backend.
#pragma once
#include "hashgrid.h"

static const int MAX_LEVELS = 24, MAX_LAYERS = 4, GEO_FEATURES = 16, SH_FEATURES = 16;

struct FieldDesc {
  int n_levels, n_features;                 // encoding width n_levels * n_features is a multiple of 16
  int width;                                // hidden width, a multiple of 16
  int n_density_layers, n_color_layers;     // linear layers: encoding -> width .. -> 16;  16 SH + 16 -> width .. -> 3
  int contracted;                           // 1: unbounded scene
  float density_bias;                       // sigma = exp(h[0] + density_bias)
  const float* table;                       // [rows, n_features], the master copy
  const unsigned short* table_half;         // the same in half precision; when given it is read instead, and
                                            // the networks' products may read bfloat16
  const float* density_weights[MAX_LAYERS]; // [out, in] row-major, no biases
  const float* color_weights[MAX_LAYERS];
  GridLevel levels[MAX_LEVELS];
};
