// Nearest points on a triangle mesh, by a hierarchy of bounding boxes. Positions are float32 about the mesh's own middle
// (the caller moves them there), so that a far-away frame costs no digits.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu_threads.h"

struct Vec3 {
  float x, y, z;
};
NERF_FN Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
NERF_FN Vec3 along(Vec3 a, float t, Vec3 d) { return {a.x + t * d.x, a.y + t * d.y, a.z + t * d.z}; }
NERF_FN float dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

// Nearest point of triangle abc to p, by the region of its plane that p lies over (Ericson, "Real-Time Collision
// Detection", 2005, section 5.1.5). A triangle without area answers with a point of its edges.
NERF_FN Vec3 nearest_on_triangle(Vec3 p, Vec3 a, Vec3 b, Vec3 c) {
  const Vec3 ab = b - a, ac = c - a, ap = p - a;
  const float d1 = dot(ab, ap), d2 = dot(ac, ap);
  if (d1 <= 0.0f && d2 <= 0.0f) return a;
  const Vec3 bp = p - b;
  const float d3 = dot(ab, bp), d4 = dot(ac, bp);
  if (d3 >= 0.0f && d4 <= d3) return b;
  const float vc = d1 * d4 - d3 * d2;
  if (vc <= 0.0f && d1 >= 0.0f && d3 <= 0.0f) return along(a, d1 == d3 ? 0.0f : d1 / (d1 - d3), ab);
  const Vec3 cp = p - c;
  const float d5 = dot(ab, cp), d6 = dot(ac, cp);
  if (d6 >= 0.0f && d5 <= d6) return c;
  const float vb = d5 * d2 - d1 * d6;
  if (vb <= 0.0f && d2 >= 0.0f && d6 <= 0.0f) return along(a, d2 == d6 ? 0.0f : d2 / (d2 - d6), ac);
  const float va = d3 * d6 - d5 * d4;
  if (va <= 0.0f && d4 - d3 >= 0.0f && d5 - d6 >= 0.0f) {
    const float length = (d4 - d3) + (d5 - d6);
    return along(b, length == 0.0f ? 0.0f : (d4 - d3) / length, c - b);
  }
  const float scale = 1.0f / (va + vb + vc);
  return along(along(a, vb * scale, ab), vc * scale, ac);
}

struct Bvh {
  struct Node {
    float low[3], high[3];
    int first, count;  // a leaf holds triangles order[first .. first + count); an inner node (count 0) nodes first, first + 1
  };
  static const int LEAF = 4;

  std::vector<Vec3> corners;  // [3 * triangles], in the hierarchy's order
  std::vector<int> order;     // its triangles by their number in the mesh
  std::vector<Node> nodes;

  Bvh(const float* vertices, const int* faces, int n) : order(n) {
    std::vector<Vec3> middle(n);
    auto corner = [&](int f, int k) {
      const float* v = vertices + 3 * (size_t)faces[3 * (size_t)f + k];
      return Vec3{v[0], v[1], v[2]};
    };
    for (int f = 0; f < n; ++f) {
      const Vec3 a = corner(f, 0), b = corner(f, 1), c = corner(f, 2);
      middle[f] = {(a.x + b.x + c.x) / 3, (a.y + b.y + c.y) / 3, (a.z + b.z + c.z) / 3};
      order[f] = f;
    }
    nodes.reserve(n > 0 ? (size_t)n : 1);
    nodes.push_back(Node{{}, {}, 0, n});
    for (size_t at = 0; at < nodes.size(); ++at) {  // breadth first; a node's children are neighbours
      Node node = nodes[at];
      float low[3], high[3];
      for (int a = 0; a < 3; ++a) {
        node.low[a] = low[a] = 3.4e38f;
        node.high[a] = high[a] = -3.4e38f;
      }
      for (int i = node.first; i < node.first + node.count; ++i) {
        const float* m = &middle[order[i]].x;
        for (int a = 0; a < 3; ++a) {
          low[a] = std::min(low[a], m[a]);
          high[a] = std::max(high[a], m[a]);
          for (int k = 0; k < 3; ++k) {
            const Vec3 v = corner(order[i], k);
            node.low[a] = std::min(node.low[a], (&v.x)[a]);
            node.high[a] = std::max(node.high[a], (&v.x)[a]);
          }
        }
      }
      if (node.count > LEAF) {
        int axis = 0;
        for (int a = 1; a < 3; ++a)
          if (high[a] - low[a] > high[axis] - low[axis]) axis = a;
        const int half = node.count / 2, first = node.first, count = node.count;
        std::nth_element(order.begin() + first, order.begin() + first + half, order.begin() + first + count,
                         [&](int f, int g) { return (&middle[f].x)[axis] < (&middle[g].x)[axis]; });
        node.first = (int)nodes.size();
        node.count = 0;
        nodes[at] = node;
        nodes.push_back(Node{{}, {}, first, half});
        nodes.push_back(Node{{}, {}, first + half, count - half});
      } else {
        nodes[at] = node;
      }
    }
    corners.resize(3 * (size_t)n);
    for (int i = 0; i < n; ++i)
      for (int k = 0; k < 3; ++k) corners[3 * (size_t)i + k] = corner(order[i], k);
  }

  static float distance_to_box(const Node& b, const float* p) {
    float sum = 0.0f;
    for (int a = 0; a < 3; ++a) {
      const float d = f_max(f_max(b.low[a] - p[a], p[a] - b.high[a]), 0.0f);
      sum += d * d;
    }
    return sum;
  }

  // The nearest point to p, the number of its triangle, and the distance squared.
  float nearest(Vec3 p, int* face, Vec3* point) const {
    struct Waiting {
      int node;
      float distance;
    } stack[64];
    int depth = 0;
    float best = 3.4e38f;
    stack[depth++] = {0, 0.0f};
    while (depth > 0) {
      const Waiting next = stack[--depth];
      if (next.distance >= best) continue;
      const Node& node = nodes[next.node];
      for (int i = node.first; i < node.first + node.count; ++i) {
        const Vec3 q = nearest_on_triangle(p, corners[3 * (size_t)i], corners[3 * (size_t)i + 1], corners[3 * (size_t)i + 2]);
        const Vec3 to = p - q;
        const float d = dot(to, to);
        if (d < best) {
          best = d;
          *face = order[i];
          *point = q;
        }
      }
      if (node.count > 0) continue;
      Waiting near = {node.first, distance_to_box(nodes[node.first], &p.x)};
      Waiting far = {node.first + 1, distance_to_box(nodes[node.first + 1], &p.x)};
      if (far.distance < near.distance) std::swap(near, far);
      if (far.distance < best) stack[depth++] = far;
      if (near.distance < best) stack[depth++] = near;
    }
    return best;
  }
};

static const int QUERY_CHUNK = 1 << 10;

// distances [n], faces [n] and points [n, 3] of the mesh nearest to queries [n, 3].
static void nearest_points(const float* vertices, const int* faces, int n_faces, const float* queries, long long n,
                           float* distances, int* nearest_faces, float* points, int n_threads) {
  const Bvh bvh(vertices, faces, n_faces);
  parallel_for((int)((n + QUERY_CHUNK - 1) / QUERY_CHUNK), n_threads, [&](int chunk) {
    const long long first = (long long)chunk * QUERY_CHUNK, last = std::min(n, first + QUERY_CHUNK);
    for (long long i = first; i < last; ++i) {
      int face = 0;
      Vec3 point = {};
      const float* q = queries + 3 * i;
      distances[i] = __builtin_sqrtf(bvh.nearest({q[0], q[1], q[2]}, &face, &point));
      nearest_faces[i] = face;
      points[3 * i] = point.x;
      points[3 * i + 1] = point.y;
      points[3 * i + 2] = point.z;
    }
  });
}
