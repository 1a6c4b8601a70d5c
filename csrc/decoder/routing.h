// Which experts of a mixture a token is sent to, and with which weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitdistill {

struct Routed {
  int64_t token;
  float weight;
};

class Routing {
 public:
  // From the router's logits [tokens][experts], which are overwritten: see bd_mixture. Throws std::bad_alloc.
  void route(float* logits, int64_t tokens, int64_t experts, int64_t experts_per_token, bool normalise);

  const std::vector<Routed>& tokens_of(size_t expert) const { return by_expert_[expert]; }

 private:
  std::vector<std::vector<Routed>> by_expert_;
  std::vector<int64_t> order_;
};

}  // namespace bitdistill
