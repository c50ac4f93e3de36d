// Generalised winding numbers: how often a surface goes around a point, 1 inside and 0 outside of a closed one, and
// something between where it has holes. Far clusters count as one dipole and its slope (Barill, Dickson, Schmidt, Levin,
// Jacobson, "Fast Winding Numbers for Soups and Clouds", 2018, equations 7 and 13).
#pragma once
#include "cpu_bvh.h"

NERF_FN Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
NERF_FN Vec3 times(float t, Vec3 a) { return {t * a.x, t * a.y, t * a.z}; }
NERF_FN Vec3 cross(Vec3 a, Vec3 b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
NERF_FN float length(Vec3 a) { return __builtin_sqrtf(dot(a, a)); }

// Half the solid angle of triangle abc seen from the origin (Van Oosterom and Strackee 1983).
static inline float half_solid_angle(Vec3 a, Vec3 b, Vec3 c) {
  const float la = length(a), lb = length(b), lc = length(c);
  const float below = la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb;
  return __builtin_atan2f(dot(a, cross(b, c)), below);
}

struct WindingTree {
  struct Cluster {
    Vec3 middle;   // mean position, weighted by area
    float reach;   // beyond this distance squared from the middle the expansion is used
    float area;
    Vec3 normal;   // sum of area * normal
    float slope[6];  // symmetric part of sum area (position - middle) normal^T: xx, yy, zz, xy, xz, yz
  };
  static constexpr float FAR = 2.0f;  // radii of a cluster, Barill et al.'s beta

  const Bvh bvh;
  const bool points;
  std::vector<Vec3> normals;  // of elements in the hierarchy's order, times their area
  std::vector<Cluster> clusters;

  // Without `areas` the elements are triangles; with them [n, 3] they are points (faces of one vertex three times).
  WindingTree(const float* vertices, const int* faces, int n, const float* areas)
      : bvh(vertices, faces, n), points(areas != nullptr), normals(n), clusters(bvh.nodes.size()) {
    for (int i = 0; i < n; ++i) {
      const Vec3 *t = &bvh.corners[3 * (size_t)i], a = t[0];
      const float* own = areas ? areas + 3 * (size_t)bvh.order[i] : nullptr;
      normals[i] = own ? Vec3{own[0], own[1], own[2]} : times(0.5f, cross(t[1] - a, t[2] - a));
    }
    for (size_t at = bvh.nodes.size(); at-- > 0;) {  // children come after their parents
      const Bvh::Node& node = bvh.nodes[at];
      Cluster c = {};
      Vec3 sum = {}, plain = {};
      auto gather = [&](Vec3 p, float area, Vec3 normal) {
        sum = sum + times(area, p);
        c.area += area;
        c.normal = c.normal + normal;
      };
      for (int i = node.first; i < node.first + node.count; ++i) {
        gather(centre(i), length(normals[i]), normals[i]);
        plain = plain + times(1.0f / node.count, centre(i));
      }
      if (node.count == 0)
        for (int k = 0; k < 2; ++k) {
          const Cluster& child = clusters[node.first + k];
          gather(child.middle, child.area, child.normal);
          plain = plain + times(0.5f, child.middle);
        }
      c.middle = c.area > 0.0f ? times(1.0f / c.area, sum) : plain;
      for (int i = node.first; i < node.first + node.count; ++i) tilt(c, centre(i) - c.middle, normals[i]);
      if (node.count == 0)
        for (int k = 0; k < 2; ++k) {
          const Cluster& child = clusters[node.first + k];
          tilt(c, child.middle - c.middle, child.normal);
          for (int j = 0; j < 6; ++j) c.slope[j] += child.slope[j];
        }
      float radius = 0.0f;
      for (int a = 0; a < 3; ++a) {
        const float d = f_max((&c.middle.x)[a] - node.low[a], node.high[a] - (&c.middle.x)[a]);
        radius += d * d;
      }
      c.reach = FAR * FAR * radius;
      clusters[at] = c;
    }
  }

  Vec3 centre(int i) const {
    const Vec3* t = &bvh.corners[3 * (size_t)i];
    return times(1.0f / 3.0f, t[0] + t[1] + t[2]);
  }

  static void tilt(Cluster& c, Vec3 x, Vec3 n) {
    const float terms[6] = {x.x * n.x, x.y * n.y, x.z * n.z, 0.5f * (x.x * n.y + x.y * n.x),
                            0.5f * (x.x * n.z + x.z * n.x), 0.5f * (x.y * n.z + x.z * n.y)};
    for (int j = 0; j < 6; ++j) c.slope[j] += terms[j];
  }

  // The winding number around q.
  float at(Vec3 q) const {
    int stack[64], depth = 0;
    float sum = 0.0f, angles = 0.0f;
    stack[depth++] = 0;
    while (depth > 0) {
      const int which = stack[--depth];
      const Cluster& c = clusters[which];
      const Vec3 r = c.middle - q;
      const float squared = dot(r, r);
      if (squared > c.reach && squared > 0.0f) {
        const float inverse2 = 1.0f / squared, inverse3 = inverse2 * __builtin_sqrtf(inverse2);
        const float* s = c.slope;
        const float along = s[0] * r.x * r.x + s[1] * r.y * r.y + s[2] * r.z * r.z +
                            2.0f * (s[3] * r.x * r.y + s[4] * r.x * r.z + s[5] * r.y * r.z);
        sum += inverse3 * (dot(r, c.normal) + s[0] + s[1] + s[2] - 3.0f * inverse2 * along);
        continue;
      }
      const Bvh::Node& node = bvh.nodes[which];
      for (int i = node.first; i < node.first + node.count; ++i) {
        const Vec3* t = &bvh.corners[3 * (size_t)i];
        if (!points) {
          angles += half_solid_angle(t[0] - q, t[1] - q, t[2] - q);
          continue;
        }
        const Vec3 to = t[0] - q;
        const float d2 = dot(to, to);
        if (d2 > 1e-30f) sum += dot(to, normals[i]) / (d2 * __builtin_sqrtf(d2));
      }
      if (node.count > 0) continue;
      stack[depth++] = node.first;
      stack[depth++] = node.first + 1;
    }
    const float pi = 3.14159265358979f;
    return sum / (4.0f * pi) + angles / (2.0f * pi);
  }
};

// winding numbers [n] of the surface around queries [n, 3].
static void winding_numbers(const float* vertices, const int* faces, int n_faces, const float* areas, const float* queries,
                            long long n, float* out, int n_threads) {
  const WindingTree tree(vertices, faces, n_faces, areas);
  parallel_for((int)((n + QUERY_CHUNK - 1) / QUERY_CHUNK), n_threads, [&](int chunk) {
    const long long first = (long long)chunk * QUERY_CHUNK, last = std::min(n, first + QUERY_CHUNK);
    for (long long i = first; i < last; ++i) out[i] = tree.at({queries[3 * i], queries[3 * i + 1], queries[3 * i + 2]});
  });
}
