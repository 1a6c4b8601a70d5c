#include "decoder/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace bitdistill {

void Routing::route(float* logits, int64_t tokens, int64_t experts, int64_t experts_per_token, bool normalise) {
  by_expert_.resize(std::max(by_expert_.size(), static_cast<size_t>(experts)));
  for (std::vector<Routed>& routed : by_expert_) routed.clear();
  order_.resize(static_cast<size_t>(experts));
  for (int64_t t = 0; t < tokens; ++t) {
    float* const p = logits + t * experts;
    const float highest = *std::max_element(p, p + experts);
    float sum = 0.0f;
    for (int64_t e = 0; e < experts; ++e) sum += p[e] = std::exp(p[e] - highest);
    // All of them, so that there is an order: such a token has no output but NaN anyway.
    if (!std::isfinite(sum)) std::fill(p, p + experts, std::numeric_limits<float>::quiet_NaN());
    std::iota(order_.begin(), order_.end(), 0);
    const auto end = order_.begin() + experts_per_token;
    std::partial_sort(order_.begin(), end, order_.end(),
                      [p](int64_t a, int64_t b) { return p[a] > p[b] || (p[a] == p[b] && a < b); });
    if (normalise) sum = std::accumulate(order_.begin(), end, 0.0f, [p](float x, int64_t e) { return x + p[e]; });
    for (auto e = order_.begin(); e != end; ++e) by_expert_[static_cast<size_t>(*e)].push_back({t, p[*e] / sum});
  }
}

}  // namespace bitdistill
