// The decoder against its definition in bitdistill.h written down plainly in double, on every instruction set, over
// models that have every option; its caches; and its argument checks.
#include <algorithm>
#include <string>

#include "reference.h"

namespace {

using test::Case;
using test::Packed;
using test::Random;
using test::random_case;

// ---- A random model --------------------------------------------------------------------------------------------------

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to 11 bits, half to even, as a normal half.
float round_to_half(float x) {
  if (x == 0.0f) return x;
  int exponent;
  std::frexp(x, &exponent);
  const int lowest = std::max(exponent - 11, -24);
  return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -lowest)), lowest));
}

void fill(Random& random, int64_t count, float mean, float deviation, std::vector<float>* out) {
  std::normal_distribution<float> normal(mean, deviation);
  for (int64_t i = 0; i < count; ++i) out->push_back(normal(random));
}

// A random matrix of floats: its values, which the kind can hold, and their 16-bit form if it has one.
struct Floats {
  Floats(Random& random, int64_t count, float deviation, bd_table_kind of_kind) : kind(of_kind) {
    fill(random, count, 0.0f, deviation, &values);
    for (float& v : values) {
      uint32_t bits;
      std::memcpy(&bits, &v, sizeof bits);
      if (kind == BD_TABLE_BFLOAT16) {
        v = from_bits(bits & 0xffff0000u);
        halves.push_back(static_cast<uint16_t>(bits >> 16));
      } else if (kind == BD_TABLE_FLOAT16) {
        v = round_to_half(v);
        std::memcpy(&bits, &v, sizeof bits);
        // Normal halves alone: smaller ones become zero.
        if (std::fabs(v) < 0x1p-14f) v = 0.0f, bits = 0;
        halves.push_back(bits == 0 ? 0 : static_cast<uint16_t>(((bits >> 16) & 0x8000u) | (((bits & 0x7fffffffu) - 0x38000000u) >> 13)));
      }
    }
  }
  bd_table view() const {
    if (kind == BD_TABLE_FLOAT32) return {kind, values.data(), values.size() * sizeof(float)};
    return {kind, halves.data(), halves.size() * sizeof(uint16_t)};
  }
  bd_table_kind kind;
  std::vector<float> values;
  std::vector<uint16_t> halves;
};

// Of a projection: ternary, unless `kind` is one of floats.
struct Weight {
  Weight(Random& random, int64_t rows, int64_t cols, int scale_kind, bool with_bias, bool with_norm, bd_table_kind kind,
         int64_t adapter_rank)
      : made(random_case(random, BD_TERNARY, rows, cols, scale_kind)), packed(made.pack()), rank(adapter_rank) {
    if (kind != BD_TABLE_PACKED) floats.emplace_back(random, rows * cols, 0.3f, kind);
    // A trained layer keeps the size of what goes through it.
    if (with_bias) fill(random, rows, 0.0f, 0.1f, &bias);
    if (with_norm) fill(random, cols, 1.0f, 0.2f, &norm);
    if (rank != 0) adapter.emplace_back(random, rank * cols, 0.2f, BD_TABLE_FLOAT32);
    if (rank != 0) adapter.emplace_back(random, rank * rows, 0.2f, BD_TABLE_FLOAT32);
  }
  bd_projection view() const {
    const bd_table weight = floats.empty() ? bd_table{BD_TABLE_PACKED, packed.data(), packed.size()} : floats[0].view();
    return {weight, bias.empty() ? nullptr : bias.data(), bias.size(),
            {norm.empty() ? nullptr : norm.data(), norm.size(), 1e-5f}, adapter_view()};
  }
  bd_adapter adapter_view() const {
    if (adapter.empty()) return {};
    const std::vector<float>&a = adapter[0].values, &b = adapter[1].values;
    return {a.data(), a.size(), b.data(), b.size(), rank};
  }
  Case made;
  Packed packed;
  int64_t rank;                // of the adapter; 0: none
  std::vector<Floats> adapter;  // a, b
  std::vector<Floats> floats;  // one or none
  std::vector<float> bias, norm;
};

struct Options {
  int64_t heads = 4, kv_heads = 2, head_dim = 16, hidden = 48, inner = 80, vocab = 67, layers = 2, max_positions = 300;
  int qk_norm = 0;  // 1: a head, 2: all heads
  bool pre_norms = true, post_norms = false, sub_norms = false, all_sub_norms = false, bias = false, fused = false;
  bool packed_head = false;
  int64_t experts = 0, experts_per_token = 2;  // of the last layer; 0: it is no mixture
  bool normalise = false;
  int rotary = 16;  // 0: none
  int64_t window = 0;
  float attention_softcap = 0, logit_softcap = 0, embedding_scale = 1;
  int scale_kind = 0;
  bd_activation activation = BD_SILU;
  bd_dtype kv_dtype = BD_FLOAT32;
  bd_table_kind table = BD_TABLE_FLOAT32;
  bd_table_kind every_second = BD_TABLE_PACKED;  // projection's weight
  int64_t adapter_rank = 0;                      // of every third projection, of the next one more
};

struct MlpWeights {
  std::vector<Weight> gate_up;
  std::vector<Weight> down;  // one
};

struct LayerWeights {
  std::vector<float> input_norm, post_attention_norm, pre_feedforward_norm, post_feedforward_norm, q_norm, k_norm;
  std::vector<Weight> qkv;
  std::vector<Weight> o;        // one
  std::vector<MlpWeights> mlps;  // one, or the experts
  std::vector<Floats> router;   // none, or one
};

struct TestModel {
  TestModel(Random& random, const Options& chosen)
      : options(chosen), table(random, chosen.vocab * chosen.hidden, 1.0f, chosen.table) {
    const Options& o = options;
    int projections = 0;
    const auto vector = [&](bool wanted, int64_t count) {
      std::vector<float> v;
      if (wanted) fill(random, count, 1.0f, 0.2f, &v);
      return v;
    };
    const int64_t q = o.heads * o.head_dim, kv = o.kv_heads * o.head_dim;
    for (int64_t l = 0; l < o.layers; ++l) {
      LayerWeights w;
      w.input_norm = vector(o.pre_norms, o.hidden);
      w.pre_feedforward_norm = vector(o.pre_norms, o.hidden);
      w.post_attention_norm = vector(o.post_norms, o.hidden);
      w.post_feedforward_norm = vector(o.post_norms, o.hidden);
      w.q_norm = vector(o.qk_norm != 0, o.qk_norm == 1 ? o.head_dim : q);
      w.k_norm = vector(o.qk_norm != 0, o.qk_norm == 1 ? o.head_dim : kv);
      const auto add = [&](std::vector<Weight>* to, int64_t rows, int64_t cols, bool norm) {
        const bd_table_kind kind = projections++ % 2 == 0 ? BD_TABLE_PACKED : o.every_second;
        const int64_t rank = o.adapter_rank == 0 || projections % 3 == 0 ? 0 : o.adapter_rank + projections % 3 - 1;
        to->emplace_back(random, rows, cols, o.scale_kind, o.bias, norm, kind, rank);
      };
      if (o.fused) {
        add(&w.qkv, q + 2 * kv, o.hidden, o.all_sub_norms);
      } else {
        for (const int64_t rows : {q, kv, kv}) add(&w.qkv, rows, o.hidden, o.all_sub_norms);
      }
      add(&w.o, o.hidden, q, o.sub_norms || o.all_sub_norms);
      const bool mixture = o.experts != 0 && l == o.layers - 1;
      if (mixture) w.router.emplace_back(random, o.experts * o.hidden, 0.5f, o.table);
      w.mlps.resize(static_cast<size_t>(mixture ? o.experts : 1));
      for (MlpWeights& mlp : w.mlps) {
        const int64_t inner = mixture ? o.inner + 9 : o.inner;
        if (o.fused) add(&mlp.gate_up, 2 * inner, o.hidden, o.all_sub_norms);
        for (int i = 0; !o.fused && i < 2; ++i) add(&mlp.gate_up, inner, o.hidden, o.all_sub_norms);
        add(&mlp.down, o.hidden, inner, o.sub_norms || o.all_sub_norms);
      }
      layers.push_back(std::move(w));
    }
    fill(random, o.hidden, 1.0f, 0.2f, &final_norm);
    if (o.packed_head) head.push_back(random_case(random, BD_INT8, o.vocab, o.hidden, 1));
    if (o.packed_head) packed_head.push_back(head[0].pack());
    for (int i = 0; i < o.rotary / 2; ++i) inv_freq.push_back(std::pow(100.0f, -2.0f * static_cast<float>(i) / static_cast<float>(o.rotary)));

    for (const LayerWeights& w : layers) {
      bd_layer layer{};
      const auto norm = [](const std::vector<float>& v) { return bd_norm{v.empty() ? nullptr : v.data(), v.size(), 1e-5f}; };
      layer.input_norm = norm(w.input_norm);
      layer.post_attention_norm = norm(w.post_attention_norm);
      layer.pre_feedforward_norm = norm(w.pre_feedforward_norm);
      layer.post_feedforward_norm = norm(w.post_feedforward_norm);
      layer.q_norm = norm(w.q_norm);
      layer.k_norm = norm(w.k_norm);
      layer.qkv_count = static_cast<int32_t>(w.qkv.size());
      for (size_t i = 0; i < w.qkv.size(); ++i) layer.qkv[i] = w.qkv[i].view();
      layer.o = w.o[0].view();
      const int32_t gate_up_count = static_cast<int32_t>(w.mlps[0].gate_up.size());
      std::vector<bd_expert> mlps(w.mlps.size());
      for (size_t e = 0; e < mlps.size(); ++e) {
        for (size_t i = 0; i < w.mlps[e].gate_up.size(); ++i) mlps[e].gate_up[i] = w.mlps[e].gate_up[i].view();
        mlps[e].down = w.mlps[e].down[0].view();
      }
      if (w.router.empty()) {
        layer.gate_up_count = gate_up_count;
        std::copy_n(mlps[0].gate_up, 2, layer.gate_up);
        layer.down = mlps[0].down;
      } else {
        experts = mlps;
        layer.mixture = {w.router[0].view(), experts.data(), static_cast<int32_t>(o.experts),
                         static_cast<int32_t>(o.experts_per_token), gate_up_count, o.normalise, o.inner + 9};
      }
      layer.rope = o.rotary == 0 ? -1 : 0;
      layer.window = views.size() % 2 == 0 ? o.window : 0;
      views.push_back(layer);
    }
    rope = {inv_freq.data(), inv_freq.size(), 1.1f};
    config.vocab_size = o.vocab;
    config.hidden_size = o.hidden;
    config.intermediate_size = o.inner;
    config.head_dim = o.head_dim;
    config.max_positions = o.max_positions;
    config.heads = static_cast<int32_t>(o.heads);
    config.kv_heads = static_cast<int32_t>(o.kv_heads);
    config.layer_count = static_cast<int32_t>(views.size());
    config.layers = views.data();
    config.rope_count = o.rotary == 0 ? 0 : 1;
    config.ropes = &rope;
    config.embedding = table.view();
    config.head = o.packed_head ? bd_table{BD_TABLE_PACKED, packed_head[0].data(), packed_head[0].size()} : table.view();
    config.final_norm = {final_norm.data(), final_norm.size(), 1e-5f};
    config.embedding_scale = o.embedding_scale;
    config.attention_scale = 1.0f / std::sqrt(static_cast<float>(o.head_dim));
    config.attention_softcap = o.attention_softcap;
    config.logit_softcap = o.logit_softcap;
    config.activation = o.activation;
    config.kv_dtype = o.kv_dtype;
  }
  TestModel(const TestModel&) = delete;

  Options options;
  std::vector<LayerWeights> layers;
  Floats table;
  std::vector<float> final_norm, inv_freq;
  std::vector<Case> head;
  std::vector<Packed> packed_head;
  std::vector<bd_layer> views;
  std::vector<bd_expert> experts;
  bd_rope rope;
  bd_decoder_config config{};
};

// ---- The definition --------------------------------------------------------------------------------------------------

using Vector = std::vector<double>;

Vector normed(const Vector& x, const std::vector<float>& weight, size_t first = 0, size_t count = 0) {
  if (weight.empty()) return x;
  if (count == 0) count = x.size();
  double sum = 0;
  for (size_t i = first; i < first + count; ++i) sum += x[i] * x[i];
  const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(count) + static_cast<double>(1e-5f));
  Vector y = x;
  for (size_t i = 0; i < count; ++i) y[first + i] = x[first + i] * inverse * static_cast<double>(weight[i]);
  return y;
}

Vector product(const Case& made, const Vector& x) {
  double largest = 1e-5;
  for (const double v : x) largest = std::max(largest, std::fabs(v));
  Vector y(static_cast<size_t>(made.rows));
  for (int64_t r = 0; r < made.rows; ++r) {
    for (int64_t c = 0; c < made.cols; ++c) {
      const double q = std::nearbyint(x[static_cast<size_t>(c)] * 127.0 / largest);
      const int64_t group = made.group_size == 0 ? 0 : c / made.group_size;
      y[static_cast<size_t>(r)] += q * made.values[static_cast<size_t>(r * made.cols + c)] * static_cast<double>(made.scale_of(r, group));
    }
    y[static_cast<size_t>(r)] *= largest / 127.0;
  }
  return y;
}

Vector product(const Floats& matrix, const Vector& x) {
  Vector y(matrix.values.size() / x.size());
  for (size_t r = 0; r < y.size(); ++r) {
    for (size_t c = 0; c < x.size(); ++c) y[r] += static_cast<double>(matrix.values[r * x.size() + c]) * x[c];
  }
  return y;
}

Vector linear(const std::vector<Weight>& weights, const Vector& x) {
  Vector all;
  for (const Weight& w : weights) {
    const Vector input = normed(x, w.norm);
    Vector y = w.floats.empty() ? product(w.made, input) : product(w.floats[0], input);
    if (!w.adapter.empty()) {
      const Vector inner = product(w.adapter[0], input);
      for (size_t i = 0; i < inner.size() * y.size(); ++i) {
        y[i % y.size()] += inner[i / y.size()] * static_cast<double>(w.adapter[1].values[i]);
      }
    }
    for (size_t r = 0; r < y.size(); ++r) all.push_back(y[r] + (w.bias.empty() ? 0.0 : static_cast<double>(w.bias[r])));
  }
  return all;
}

// Each head rounded to integers of 8 bits times a scale.
void round_heads(Vector* x, size_t head_dim) {
  for (size_t first = 0; first < x->size(); first += head_dim) {
    double largest = 0;
    for (size_t i = first; i < first + head_dim; ++i) largest = std::max(largest, std::fabs((*x)[i]));
    const double scale = largest / 127;
    for (size_t i = first; i < first + head_dim && scale > 0; ++i) (*x)[i] = std::nearbyint((*x)[i] / scale) * scale;
  }
}

double cap(double x, float c) { return c == 0.0f ? x : static_cast<double>(c) * std::tanh(x / static_cast<double>(c)); }

double act(bd_activation kind, double x) {
  switch (kind) {
    case BD_SILU: return x / (1 + std::exp(-x));
    case BD_GELU: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case BD_GELU_TANH: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    case BD_RELU: return std::max(x, 0.0);
    case BD_RELU_SQUARED: return std::max(x, 0.0) * std::max(x, 0.0);
  }
  return x;
}

Vector feedforward(const Options& o, const MlpWeights& mlp, const Vector& x) {
  const Vector gate_up = linear(mlp.gate_up, x);
  const size_t n = gate_up.size() / 2;
  Vector inner(n);
  for (size_t i = 0; i < n; ++i) inner[i] = act(o.activation, gate_up[i]) * gate_up[n + i];
  return linear(mlp.down, inner);
}

Vector mixture(const Options& o, const LayerWeights& w, const Vector& x) {
  Vector p = product(w.router[0], x);
  double all = 0;
  for (double& value : p) all += value = std::exp(value);
  for (double& value : p) value /= all;
  std::vector<size_t> chosen;
  double sum = 0;
  while (chosen.size() < static_cast<size_t>(o.experts_per_token)) {
    size_t best = p.size();
    for (size_t e = 0; e < p.size(); ++e) {
      const bool taken = std::find(chosen.begin(), chosen.end(), e) != chosen.end();
      if (!taken && (best == p.size() || p[e] > p[best])) best = e;
    }
    chosen.push_back(best);
    sum += p[best];
  }
  Vector out(x.size());
  for (const size_t e : chosen) {
    const Vector one = feedforward(o, w.mlps[e], x);
    for (size_t i = 0; i < out.size(); ++i) out[i] += one[i] * (o.normalise ? p[e] / sum : p[e]);
  }
  return out;
}

// Logits of every token of one sequence.
std::vector<Vector> define(const TestModel& m, const std::vector<int64_t>& tokens) {
  const Options& o = m.options;
  const size_t D = static_cast<size_t>(o.head_dim), H = static_cast<size_t>(o.heads), K = static_cast<size_t>(o.kv_heads);
  std::vector<std::vector<Vector>> keys(m.layers.size()), values(m.layers.size());
  std::vector<Vector> logits;
  for (size_t p = 0; p < tokens.size(); ++p) {
    Vector h;
    for (int64_t i = 0; i < o.hidden; ++i) {
      h.push_back(static_cast<double>(m.table.values[static_cast<size_t>(tokens[p] * o.hidden + i)]) * static_cast<double>(o.embedding_scale));
    }
    for (size_t l = 0; l < m.layers.size(); ++l) {
      const LayerWeights& w = m.layers[l];
      const Vector qkv = linear(w.qkv, normed(h, w.input_norm));
      Vector q(qkv.begin(), qkv.begin() + static_cast<long>(H * D));
      Vector k(qkv.begin() + static_cast<long>(H * D), qkv.begin() + static_cast<long>((H + K) * D));
      Vector v(qkv.begin() + static_cast<long>((H + K) * D), qkv.end());
      const size_t normed_width = w.q_norm.size();
      for (size_t i = 0; normed_width != 0 && i < q.size(); i += w.q_norm.size()) q = normed(q, w.q_norm, i, w.q_norm.size());
      for (size_t i = 0; normed_width != 0 && i < k.size(); i += w.k_norm.size()) k = normed(k, w.k_norm, i, w.k_norm.size());
      for (Vector* heads : {&q, &k}) {
        for (size_t first = 0; first < heads->size(); first += D) {
          for (size_t i = 0; i < m.inv_freq.size(); ++i) {
            const double angle = static_cast<double>(static_cast<float>(p) * m.inv_freq[i]);
            const double c = std::cos(angle) * static_cast<double>(1.1f), s = std::sin(angle) * static_cast<double>(1.1f);
            double& a = (*heads)[first + i];
            double& b = (*heads)[first + i + m.inv_freq.size()];
            const double old = a;
            a = a * c - b * s;
            b = b * c + old * s;
          }
        }
      }
      if (o.kv_dtype == BD_FLOAT16) {
        for (Vector* stored : {&k, &v}) {
          for (double& x : *stored) x = static_cast<double>(round_to_half(static_cast<float>(x)));
        }
      }
      if (o.kv_dtype == BD_SCALED_INT8) {
        for (Vector* rounded : {&q, &k, &v}) round_heads(rounded, D);
      }
      keys[l].push_back(k);
      values[l].push_back(v);
      Vector heads(H * D);
      const size_t window = static_cast<size_t>(m.views[l].window);
      const size_t first = window > 0 && p + 1 > window ? p + 1 - window : 0;
      for (size_t head = 0; head < H; ++head) {
        const size_t kv = head / (H / K);
        Vector score;
        for (size_t j = first; j <= p; ++j) {
          double dot = 0;
          for (size_t i = 0; i < D; ++i) dot += q[head * D + i] * keys[l][j][kv * D + i];
          score.push_back(cap(dot * static_cast<double>(m.config.attention_scale), o.attention_softcap));
        }
        const double most = *std::max_element(score.begin(), score.end());
        double sum = 0;
        for (double& s : score) sum += s = std::exp(s - most);
        for (size_t j = first; j <= p; ++j) {
          for (size_t i = 0; i < D; ++i) heads[head * D + i] += score[j - first] / sum * values[l][j][kv * D + i];
        }
      }
      const Vector attended = normed(linear(w.o, heads), w.post_attention_norm);
      for (size_t i = 0; i < h.size(); ++i) h[i] += attended[i];
      const Vector x = normed(h, w.pre_feedforward_norm);
      const Vector fed = normed(w.router.empty() ? feedforward(o, w.mlps[0], x) : mixture(o, w, x), w.post_feedforward_norm);
      for (size_t i = 0; i < h.size(); ++i) h[i] += fed[i];
    }
    const Vector final = normed(h, m.final_norm);
    Vector row = o.packed_head ? product(m.head[0], final) : product(m.table, final);
    for (double& x : row) x = cap(x, o.logit_softcap);
    logits.push_back(row);
  }
  return logits;
}

// ---- Running ---------------------------------------------------------------------------------------------------------

struct Decoder {
  explicit Decoder(const TestModel& m) : model(m) { CHECK_OK(bd_decoder_create(&m.config, &decoder)); }
  ~Decoder() { bd_decoder_destroy(decoder); }
  const TestModel& model;
  bd_decoder* decoder = nullptr;
};

struct Cache {
  Cache(const Decoder& d, int64_t sequences) : owner(d) { CHECK_OK(bd_cache_create(d.decoder, sequences, &cache)); }
  ~Cache() { bd_cache_destroy(cache); }

  // Logits of all tokens, [tokens][vocab].
  std::vector<float> forward(const std::vector<int64_t>& tokens, const std::vector<int64_t>& sequences) {
    std::vector<int64_t> index(tokens.size());
    for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int64_t>(i);
    std::vector<float> out(tokens.size() * static_cast<size_t>(owner.model.options.vocab));
    CHECK_OK(bd_decoder_forward(owner.decoder, cache, tokens.data(), sequences.data(), tokens.size(), index.data(),
                                index.size(), BD_OUTPUT_LOGITS, out.data(), out.size()));
    return out;
  }
  std::vector<int64_t> lengths() const {
    int64_t count;
    CHECK_OK(bd_cache_sequences(cache, &count));
    std::vector<int64_t> out(static_cast<size_t>(count));
    CHECK_OK(bd_cache_lengths(cache, out.data(), out.size()));
    return out;
  }
  const Decoder& owner;
  bd_cache* cache = nullptr;
};

std::vector<int64_t> random_tokens(Random& random, int64_t count, int64_t vocab) {
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(test::uniform(random, 0, vocab - 1));
  return tokens;
}

// A value that lies within rounding of half a step of its quantisation may go either way, and these models, untrained,
// amplify that. So most logits must agree to float32, and the others must not be of another size. With halves or 8-bit integers
// in the cache, where the last bit of a key may go either way, they agree to that bit.
void check_close(const std::vector<float>& got, const Vector& wanted, const Options& options, const std::string& what) {
  const double limit = options.kv_dtype == BD_SCALED_INT8 ? 1e-2 : options.kv_dtype == BD_FLOAT16 ? 1e-3 : 1e-4;
  CHECK(got.size() == wanted.size());
  double square = 0;
  std::vector<double> difference;
  for (size_t i = 0; i < got.size(); ++i) {
    square += wanted[i] * wanted[i];
    difference.push_back(std::fabs(static_cast<double>(got[i]) - wanted[i]));
  }
  const double size = std::sqrt(square / static_cast<double>(got.size()));
  std::sort(difference.begin(), difference.end());
  const double typical = difference[difference.size() / 2] / size, worst = difference.back() / size;
  if (!(typical < limit && worst < 4.0)) {
    std::fprintf(stderr, "%s: typical difference %g, largest %g of the size of the logits\n", what.c_str(), typical, worst);
    std::exit(1);
  }
}

Vector flat(const std::vector<Vector>& rows, size_t first = 0) {
  Vector all;
  for (size_t i = first; i < rows.size(); ++i) all.insert(all.end(), rows[i].begin(), rows[i].end());
  return all;
}

std::vector<std::pair<std::string, Options>> variants() {
  std::vector<std::pair<std::string, Options>> all;
  const auto add = [&](const char* name, void (*change)(Options&)) {
    Options o;
    change(o);
    all.emplace_back(name, o);
  };
  add("plain", [](Options&) {});
  add("qwen", [](Options& o) { o.bias = true; o.qk_norm = 1; o.sub_norms = true; o.table = BD_TABLE_BFLOAT16; o.heads = 6; });
  add("gemma", [](Options& o) {
    o.post_norms = true; o.attention_softcap = 5; o.logit_softcap = 20; o.window = 7; o.embedding_scale = 6.9f;
    o.activation = BD_GELU_TANH; o.head_dim = 24; o.rotary = 24; o.kv_dtype = BD_FLOAT16;
  });
  add("phi", [](Options& o) { o.fused = true; o.rotary = 10; o.kv_heads = 4; o.kv_dtype = BD_FLOAT16; o.table = BD_TABLE_FLOAT16; });
  add("olmo", [](Options& o) { o.pre_norms = false; o.post_norms = true; o.qk_norm = 2; o.scale_kind = 1; });
  add("bitnet", [](Options& o) { o.sub_norms = true; o.activation = BD_RELU_SQUARED; o.packed_head = true; });
  add("all sub norms", [](Options& o) { o.all_sub_norms = true; o.rotary = 0; o.scale_kind = 2; o.hidden = 130; });
  add("17 dimensions a head", [](Options& o) { o.activation = BD_GELU; o.heads = 9; o.kv_heads = 1; o.head_dim = 17; o.rotary = 16; o.kv_dtype = BD_FLOAT16; });
  add("relu", [](Options& o) { o.activation = BD_RELU; o.inner = 33; o.hidden = 31; o.vocab = 5; });
  add("some in float32", [](Options& o) { o.every_second = BD_TABLE_FLOAT32; o.bias = true; o.inner = 33; });
  add("some in bfloat16", [](Options& o) { o.every_second = BD_TABLE_BFLOAT16; o.all_sub_norms = o.bias = true; o.hidden = 31; });
  add("some in float16", [](Options& o) { o.every_second = BD_TABLE_FLOAT16; o.fused = o.sub_norms = true; });
  add("mixture", [](Options& o) { o.experts = 5; o.normalise = o.sub_norms = true; });
  add("mixture of many", [](Options& o) {
    o.experts = 40; o.experts_per_token = 3; o.table = BD_TABLE_BFLOAT16; o.every_second = BD_TABLE_FLOAT32; o.bias = true;
    o.pre_norms = false; o.post_norms = true; o.layers = 1;
  });
  add("adapters", [](Options& o) { o.adapter_rank = 4; o.bias = o.sub_norms = true; });
  add("adapters beside floats", [](Options& o) {
    o.adapter_rank = 3; o.every_second = BD_TABLE_BFLOAT16; o.all_sub_norms = true; o.hidden = 130; o.inner = 700; o.fused = true;
  });
  add("adapters of experts", [](Options& o) { o.adapter_rank = 17; o.experts = 5; o.sub_norms = true; o.pre_norms = false; o.post_norms = true; });
  add("mixture of one expert a token", [](Options& o) { o.experts = 3; o.experts_per_token = 1; o.all_sub_norms = true; });
  add("8-bit cache", [](Options& o) { o.kv_dtype = BD_SCALED_INT8; o.bias = o.sub_norms = true; o.head_dim = 40; });
  add("8-bit cache, softcap and window", [](Options& o) {
    o.kv_dtype = BD_SCALED_INT8; o.post_norms = true; o.attention_softcap = 5; o.window = 7; o.head_dim = 23; o.heads = 6; o.kv_heads = 1;
  });
  return all;
}

// Where everything is slow, each case runs on one instruction set, the next case on the next one.
bool in_turn = false;

template <typename F>
void for_each_isa(F&& body) {
  if (in_turn) {
    static size_t turn = 0;
    size_t count = 0;
    while (bd_supported_isas()[count] != nullptr) ++count;
    CHECK_OK(bd_set_isa(bd_supported_isas()[turn++ % count]));
    body();
    CHECK_OK(bd_set_isa(bd_supported_isas()[0]));
    return;
  }
  for (const char* const* isa = bd_supported_isas(); *isa != nullptr; ++isa) {
    CHECK_OK(bd_set_isa(*isa));
    body();
  }
  CHECK_OK(bd_set_isa(bd_supported_isas()[0]));
}

void test_definition() {
  Random random(7);
  for (const auto& [name, options] : variants()) {
    const TestModel model(random, options);
    const Decoder decoder(model);
    const std::vector<int64_t> tokens = random_tokens(random, 75, options.vocab);  // more than a page
    const Vector wanted = flat(define(model, tokens));
    for (const char* const* isa = bd_supported_isas(); *isa != nullptr; ++isa) {
      CHECK_OK(bd_set_isa(*isa));
      Cache cache(decoder, 1);
      check_close(cache.forward(tokens, std::vector<int64_t>(tokens.size(), 0)), wanted, options, name + " on " + *isa);
    }
    CHECK_OK(bd_set_isa(bd_supported_isas()[0]));
  }
}

// Sequences of different lengths together, in pieces, must give what each gives alone.
void test_batches() {
  Random random(8);
  for (const auto& [name, options] : variants()) {
    const TestModel model(random, options);
    const Decoder decoder(model);
    std::vector<std::vector<int64_t>> texts;
    for (const int64_t length : {70, 3, 66}) texts.push_back(random_tokens(random, length, options.vocab));
    Cache cache(decoder, 3);
    std::vector<size_t> done(3);
    std::vector<std::vector<float>> got(3);
    const std::vector<std::vector<size_t>> pieces = {{5, 2, 64}, {1, 0, 1}, {1, 1, 0}, {63, 0, 1}};
    for (const std::vector<size_t>& piece : pieces) {
      std::vector<int64_t> tokens, sequences;
      for (size_t s = 0; s < 3; ++s) {
        for (size_t i = 0; i < piece[s]; ++i) tokens.push_back(texts[s][done[s]++]), sequences.push_back(static_cast<int64_t>(s));
      }
      const std::vector<float> out = cache.forward(tokens, sequences);
      const size_t vocab = static_cast<size_t>(options.vocab);
      for (size_t i = 0; i < tokens.size(); ++i) {
        std::vector<float>& to = got[static_cast<size_t>(sequences[i])];
        to.insert(to.end(), out.begin() + static_cast<long>(i * vocab), out.begin() + static_cast<long>((i + 1) * vocab));
      }
    }
    const std::vector<int64_t> lengths = cache.lengths();
    for (size_t s = 0; s < 3; ++s) {
      CHECK(lengths[s] == static_cast<int64_t>(texts[s].size()) && done[s] == texts[s].size());
      check_close(got[s], flat(define(model, texts[s])), options, name + ", sequence " + std::to_string(s) + " of a batch");
    }
  }
}

void test_cache() {
  Random random(9);
  Options options;
  options.kv_dtype = BD_FLOAT16;
  const TestModel model(random, options);
  const Decoder decoder(model);
  const std::vector<int64_t> start = random_tokens(random, 70, options.vocab);
  Cache cache(decoder, 2);
  std::vector<int64_t> sequences(70, 0);
  sequences.resize(140, 1);
  std::vector<int64_t> both = start;
  const std::vector<int64_t> other = random_tokens(random, 70, options.vocab);
  both.insert(both.end(), other.begin(), other.end());
  cache.forward(both, sequences);

  // Three copies share their pages until they go on differently.
  size_t before, shared, after;
  CHECK_OK(bd_cache_bytes(cache.cache, &before));
  const int64_t source[] = {1, 0, 0};
  CHECK_OK(bd_cache_reorder(cache.cache, source, 3));
  CHECK_OK(bd_cache_bytes(cache.cache, &shared));
  CHECK(shared == before);
  const std::vector<int64_t> next = {1, 2, 3};
  const std::vector<float> out = cache.forward(next, {0, 1, 2});
  CHECK_OK(bd_cache_bytes(cache.cache, &after));
  CHECK(after == before + before / 4);
  const std::vector<std::vector<int64_t>> histories = {other, start, start};
  const size_t vocab = static_cast<size_t>(options.vocab);
  for (size_t s = 0; s < 3; ++s) {
    std::vector<int64_t> text = histories[s];
    text.push_back(next[s]);
    check_close({out.begin() + static_cast<long>(s * vocab), out.begin() + static_cast<long>((s + 1) * vocab)},
                define(model, text).back(), options, "copy " + std::to_string(s));
  }

  // Cut back into the shared page, and on.
  CHECK_OK(bd_cache_truncate(cache.cache, 1, 10));
  CHECK((cache.lengths() == std::vector<int64_t>{71, 10, 71}));
  std::vector<int64_t> text(start.begin(), start.begin() + 10);
  text.push_back(4);
  check_close(cache.forward({4}, {1}), define(model, text).back(), options, "after a cut");
  text = start;
  text.push_back(3);
  text.push_back(5);
  check_close(cache.forward({5}, {2}), define(model, text).back(), options, "beside a cut");
}

// A token that is not a number is sent to some experts, and touches no other token.
void test_not_a_number() {
  Random random(11);
  Options options;
  options.experts = 7;
  options.packed_head = true;
  TestModel model(random, options);
  model.table.values[static_cast<size_t>(3 * options.hidden + 5)] = NAN;
  const Decoder decoder(model);
  Cache cache(decoder, 3);
  const std::vector<float> out = cache.forward({1, 2, 3, 4}, {0, 0, 1, 2});
  const auto vocab = static_cast<long>(options.vocab);
  CHECK(std::all_of(out.begin() + 2 * vocab, out.begin() + 3 * vocab, [](float x) { return std::isnan(x); }));
  check_close({out.begin(), out.begin() + 2 * vocab}, flat(define(model, {1, 2})), options, "before");
  check_close({out.begin() + 3 * vocab, out.end()}, flat(define(model, {4})), options, "after");
}

// The values of later tokens take no part, even where they are no numbers.
void test_not_a_number_behind() {
  Random random(12);
  for (const int64_t heads : {4, 2, 6}) {
    Options options;
    options.heads = heads;
    options.kv_dtype = heads == 6 ? BD_SCALED_INT8 : BD_FLOAT32;
    options.window = 2;
    options.packed_head = true;
    TestModel model(random, options);
    model.table.values[static_cast<size_t>(3 * options.hidden + 5)] = NAN;
    const Decoder decoder(model);
    for_each_isa([&] {
      Cache alone(decoder, 1), together(decoder, 1);
      const std::vector<float> wanted = alone.forward({1, 2, 4}, {0, 0, 0});
      const std::vector<float> got = together.forward({1, 2, 4, 3, 5}, {0, 0, 0, 0, 0});
      const auto vocab = static_cast<long>(options.vocab);
      CHECK(std::equal(wanted.begin(), wanted.end(), got.begin()));
      CHECK(std::all_of(got.begin() + 3 * vocab, got.end(), [](float x) { return std::isnan(x); }));
    });
  }
}

// A row of logits is the same bit for bit however its text is cut, whatever texts are beside it and on any number of threads.
void test_rows() {
  Random random(13);
  std::vector<std::pair<std::string, Options>> all = variants();
  const auto add = [&](const char* name, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window, bd_dtype kv_dtype) {
    Options o;
    o.heads = heads, o.kv_heads = kv_heads, o.head_dim = head_dim, o.window = window, o.kv_dtype = kv_dtype;
    o.bias = o.sub_norms = true;
    all.emplace_back(name, o);
  };
  add("a key head for each", 3, 3, 40, 70, BD_FLOAT16);
  add("three share a key head", 6, 2, 64, 20, BD_FLOAT32);
  add("five share a key head", 5, 1, 128, 0, BD_FLOAT16);
  add("a key head of 8 bits for each", 3, 3, 40, 70, BD_SCALED_INT8);
  add("four share a key head of 8 bits", 4, 1, 24, 20, BD_SCALED_INT8);
  add("seven share a key head of 8 bits", 7, 1, 128, 0, BD_SCALED_INT8);
  for (const auto& [name, options] : all) {
    const TestModel model(random, options);
    const Decoder decoder(model);
    const size_t vocab = static_cast<size_t>(options.vocab);
    const std::vector<int64_t> text = random_tokens(random, 80, options.vocab), other = random_tokens(random, 80, options.vocab);
    for_each_isa([&] {
      const auto check = [&](const std::vector<float>& got, const std::vector<float>& wanted, const char* how) {
        if (got.size() == wanted.size() && std::memcmp(got.data(), wanted.data(), got.size() * sizeof(float)) == 0) return;
        std::fprintf(stderr, "%s: %s gives other bits\n", name.c_str(), how);
        std::exit(1);
      };
      CHECK_OK(bd_set_num_threads(1));
      std::vector<float> wanted;
      Cache steps(decoder, 1);
      for (const int64_t token : text) {
        const std::vector<float> row = steps.forward({token}, {0});
        wanted.insert(wanted.end(), row.begin(), row.end());
      }
      for (const int threads : {1, 3}) {
        CHECK_OK(bd_set_num_threads(threads));
        Cache whole(decoder, 1);
        check(whole.forward(text, std::vector<int64_t>(text.size(), 0)), wanted, "the whole text");
        // In pieces, behind a text that goes on too.
        Cache both(decoder, 2);
        std::vector<float> got;
        size_t done[2] = {};
        while (done[1] < text.size()) {
          std::vector<int64_t> tokens, sequences;
          for (size_t s = 0; s < 2; ++s) {
            const std::vector<int64_t>& of = s == 0 ? other : text;
            const int64_t longest = threads == 1 ? 4 : 40;
            for (int64_t n = test::uniform(random, static_cast<int64_t>(s), longest); n > 0 && done[s] < of.size(); --n) {
              tokens.push_back(of[done[s]++]);
              sequences.push_back(static_cast<int64_t>(s));
            }
          }
          const std::vector<float> out = both.forward(tokens, sequences);
          const auto first = std::find(sequences.begin(), sequences.end(), 1) - sequences.begin();
          got.insert(got.end(), out.begin() + first * static_cast<long>(vocab), out.end());
        }
        check(got, wanted, "a text in pieces");
      }
    });
  }
  CHECK_OK(bd_set_num_threads(2));
}

// Behind the first stretch of positions: one token, whose stretches threads share, is the same as the end of a long text.
void test_stretches() {
  Random random(14);
  for (const bd_dtype kv_dtype : {BD_FLOAT32, BD_FLOAT16, BD_SCALED_INT8}) {
    Options options;
    options.kv_dtype = kv_dtype;
    options.heads = 6, options.head_dim = 40, options.window = 520, options.max_positions = 700, options.sub_norms = true;
    const TestModel model(random, options);
    const Decoder decoder(model);
    const std::vector<int64_t> text = random_tokens(random, 600, options.vocab);
    const size_t vocab = static_cast<size_t>(options.vocab), tail = 60;
    for_each_isa([&] {
      Cache whole(decoder, 1);
      const std::vector<float> wanted = whole.forward(text, std::vector<int64_t>(text.size(), 0));
      if (kv_dtype == BD_FLOAT32) check_close(wanted, flat(define(model, text)), options, "a long text");
      for (const int threads : {1, 3}) {
        CHECK_OK(bd_set_num_threads(threads));
        Cache steps(decoder, 1);
        const std::vector<int64_t> start(text.begin(), text.end() - static_cast<long>(tail));
        steps.forward(start, std::vector<int64_t>(start.size(), 0));
        for (size_t t = start.size(); t < text.size(); ++t) {
          const std::vector<float> row = steps.forward({text[t]}, {0});
          CHECK(std::memcmp(row.data(), wanted.data() + t * vocab, vocab * sizeof(float)) == 0);
        }
      }
    });
  }
  CHECK_OK(bd_set_num_threads(2));
}

void test_failures() {
  Random random(10);
  Options options;
  options.bias = options.sub_norms = true;
  options.qk_norm = 1;
  TestModel model(random, options);
  bd_decoder* none = nullptr;
  const auto refuse = [&](auto change, int status) {
    bd_decoder_config config = model.config;
    std::vector<bd_layer> layers = model.views;
    bd_rope rope = model.rope;
    config.layers = layers.data();
    config.ropes = &rope;
    change(config, layers[1], rope);
    CHECK_STATUS(bd_decoder_create(&config, &none), status);
    CHECK(none == nullptr);
  };
  using C = bd_decoder_config;
  using L = bd_layer;
  using R = bd_rope;
  refuse([](C& c, L&, R&) { c.layers = nullptr; }, BD_ERROR_NULL_POINTER);
  refuse([](C& c, L&, R&) { c.ropes = nullptr; }, BD_ERROR_NULL_POINTER);
  refuse([](C& c, L&, R&) { c.embedding.data = nullptr; }, BD_ERROR_NULL_POINTER);
  refuse([](C& c, L&, R&) { c.vocab_size = 0; }, BD_ERROR_SHAPE);
  refuse([](C& c, L&, R&) { c.layer_count = -1; }, BD_ERROR_SHAPE);
  refuse([](C& c, L&, R&) { c.kv_heads = 3; }, BD_ERROR_SHAPE);
  refuse([](C& c, L&, R&) { c.head_dim = INT64_MAX; }, BD_ERROR_SHAPE);
  refuse([](C& c, L&, R&) { c.max_positions = -5; }, BD_ERROR_SHAPE);
  refuse([](C& c, L&, R&) { c.activation = 17; }, BD_ERROR_ARGUMENT);
  refuse([](C& c, L&, R&) { c.kv_dtype = BD_BFLOAT16; }, BD_ERROR_ARGUMENT);
  refuse([](C& c, L&, R&) { c.kv_dtype = static_cast<bd_dtype>(4); }, BD_ERROR_ARGUMENT);
  refuse([](C& c, L&, R&) { c.attention_scale = NAN; }, BD_ERROR_SCALE);
  refuse([](C& c, L&, R&) { c.logit_softcap = -1; }, BD_ERROR_ARGUMENT);
  refuse([](C& c, L&, R&) { c.embedding.kind = 9; }, BD_ERROR_ARGUMENT);
  refuse([](C& c, L&, R&) { c.embedding.bytes -= 1; }, BD_ERROR_BUFFER_SIZE);
  refuse([](C& c, L&, R&) { c.hidden_size += 1; }, BD_ERROR_BUFFER_SIZE);
  refuse([](C& c, L&, R&) { c.intermediate_size += 1; }, BD_ERROR_MODEL);
  refuse([](C& c, L&, R&) { c.final_norm.count -= 1; }, BD_ERROR_MODEL);
  refuse([](C&, L&, R& r) { r.count = 9; }, BD_ERROR_MODEL);
  refuse([](C&, L&, R& r) { r.attention_scaling = INFINITY; }, BD_ERROR_SCALE);
  refuse([](C&, L& l, R&) { l.rope = 1; }, BD_ERROR_ARGUMENT);
  refuse([](C&, L& l, R&) { l.window = -1; }, BD_ERROR_ARGUMENT);
  refuse([](C&, L& l, R&) { l.qkv_count = 4; }, BD_ERROR_ARGUMENT);
  refuse([](C&, L& l, R&) { l.qkv_count = 2; }, BD_ERROR_MODEL);
  refuse([](C&, L& l, R&) { l.qkv[0].weight.data = nullptr; }, BD_ERROR_NULL_POINTER);
  refuse([](C&, L& l, R&) { l.qkv[0].weight.bytes -= 64; }, BD_ERROR_BUFFER_SIZE);
  refuse([](C&, L& l, R&) { l.qkv[0].weight.kind = 4; }, BD_ERROR_ARGUMENT);
  const std::vector<float> down(static_cast<size_t>(options.hidden * options.inner) + 1);
  const auto as_floats = [&down](L& l, size_t first_byte, size_t bytes) {
    l.down.weight = {BD_TABLE_FLOAT32, reinterpret_cast<const char*>(down.data()) + first_byte, bytes};
  };
  const size_t row = static_cast<size_t>(options.inner) * sizeof(float), rows = static_cast<size_t>(options.hidden);
  refuse([&](C&, L& l, R&) { as_floats(l, 1, rows * row); }, BD_ERROR_ALIGNMENT);
  refuse([&](C&, L& l, R&) { as_floats(l, 0, rows * row - sizeof(float)); }, BD_ERROR_BUFFER_SIZE);
  refuse([&](C&, L& l, R&) { as_floats(l, 0, 0); }, BD_ERROR_BUFFER_SIZE);
  refuse([&](C&, L& l, R&) { as_floats(l, 0, (rows - 1) * row); l.down.bias = nullptr; l.down.bias_count = 0; }, BD_ERROR_MODEL);
  refuse([](C&, L& l, R&) { l.qkv[0].bias_count -= 1; }, BD_ERROR_MODEL);
  refuse([](C&, L& l, R&) { l.q_norm.count = 7; }, BD_ERROR_MODEL);
  refuse([](C&, L& l, R&) { l.q_norm.eps = -1; }, BD_ERROR_ARGUMENT);
  refuse([](C&, L& l, R&) { std::swap(l.o, l.down); }, BD_ERROR_MODEL);
  const std::vector<float> low(static_cast<size_t>(3 * options.hidden) + 1);
  const size_t a_count = static_cast<size_t>(2 * options.heads * options.head_dim), b_count = static_cast<size_t>(2 * options.hidden);
  const std::vector<float> factor(a_count);
  const auto adapted = [&](L& l) -> bd_adapter& { return l.o.adapter = {factor.data(), a_count, low.data(), b_count, 2}; };
  refuse([&](C&, L& l, R&) { adapted(l).a = nullptr; }, BD_ERROR_NULL_POINTER);
  refuse([&](C&, L& l, R&) { adapted(l).b = nullptr; }, BD_ERROR_NULL_POINTER);
  refuse([&](C&, L& l, R&) { l.o.adapter.rank = 1; }, BD_ERROR_NULL_POINTER);
  refuse([&](C&, L& l, R&) { adapted(l).rank = 0; }, BD_ERROR_SHAPE);
  refuse([&](C&, L& l, R&) { adapted(l).rank = 3; }, BD_ERROR_BUFFER_SIZE);
  refuse([&](C&, L& l, R&) { adapted(l).a_count -= 1; }, BD_ERROR_BUFFER_SIZE);
  refuse([&](C&, L& l, R&) { adapted(l).b_count += 2; }, BD_ERROR_BUFFER_SIZE);
  refuse([&](C&, L& l, R&) { adapted(l).b_count = 0; }, BD_ERROR_BUFFER_SIZE);
  refuse([&](C&, L& l, R&) { adapted(l).b = reinterpret_cast<const float*>(reinterpret_cast<const char*>(low.data()) + 1); }, BD_ERROR_ALIGNMENT);
  options.experts = 4;
  const TestModel mixture(random, options);
  const auto refuse_mixture = [&](auto change, int status) {
    bd_decoder_config config = mixture.config;
    std::vector<bd_layer> layers = mixture.views;
    std::vector<bd_expert> experts = mixture.experts;
    config.layers = layers.data();
    layers[1].mixture.experts = experts.data();
    change(layers[1].mixture, experts[3]);
    CHECK_STATUS(bd_decoder_create(&config, &none), status);
  };
  using M = bd_mixture;
  using E = bd_expert;
  refuse_mixture([](M& m, E&) { m.experts = nullptr; }, BD_ERROR_NULL_POINTER);
  refuse_mixture([](M& m, E&) { m.expert_count = 0; }, BD_ERROR_SHAPE);
  refuse_mixture([](M& m, E&) { m.expert_count = 3; }, BD_ERROR_MODEL);
  refuse_mixture([](M& m, E&) { m.experts_per_token = 5; }, BD_ERROR_SHAPE);
  refuse_mixture([](M& m, E&) { m.experts_per_token = 0; }, BD_ERROR_SHAPE);
  refuse_mixture([](M& m, E&) { m.gate_up_count = 3; }, BD_ERROR_ARGUMENT);
  refuse_mixture([](M& m, E&) { m.intermediate_size += 1; }, BD_ERROR_MODEL);
  refuse_mixture([](M& m, E&) { m.router.bytes -= 4; }, BD_ERROR_BUFFER_SIZE);
  refuse_mixture([](M& m, E& e) { m.router = e.down.weight; }, BD_ERROR_MODEL);
  refuse_mixture([](M&, E& e) { e.down.weight.data = nullptr; }, BD_ERROR_NULL_POINTER);
  refuse_mixture([](M&, E& e) { e.gate_up[1].bias_count -= 1; }, BD_ERROR_MODEL);

  CHECK_STATUS(bd_decoder_create(nullptr, &none), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(bd_decoder_create(&model.config, nullptr), BD_ERROR_NULL_POINTER);

  const Decoder decoder(model), twin(model);
  Cache cache(decoder, 2), foreign(twin, 2);
  bd_cache* no_cache = nullptr;
  CHECK_STATUS(bd_cache_create(decoder.decoder, 0, &no_cache), BD_ERROR_SHAPE);
  CHECK_STATUS(bd_cache_create(nullptr, 1, &no_cache), BD_ERROR_NULL_POINTER);
  std::vector<float> out(static_cast<size_t>(2 * options.vocab));
  const auto run = [&](std::vector<int64_t> tokens, std::vector<int64_t> sequences, std::vector<int64_t> index, size_t count,
                       bd_cache* with) {
    return bd_decoder_forward(decoder.decoder, with, tokens.data(), sequences.data(), tokens.size(), index.data(),
                              index.size(), BD_OUTPUT_LOGITS, out.data(), count);
  };
  const size_t one = static_cast<size_t>(options.vocab);
  const int64_t bad[] = {0, 2};
  CHECK_OK(run({1, 2}, {0, 1}, {1}, one, cache.cache));
  CHECK_STATUS(run({1, 2}, {0, 1}, {1}, one, foreign.cache), BD_ERROR_MODEL);
  CHECK_STATUS(run({1, 2}, {0, 1}, {1}, one - 1, cache.cache), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(run({1, options.vocab}, {0, 1}, {1}, one, cache.cache), BD_ERROR_INDEX);
  CHECK_STATUS(run({1, -1}, {0, 1}, {1}, one, cache.cache), BD_ERROR_INDEX);
  CHECK_STATUS(run({1, 2}, {1, 0}, {1}, one, cache.cache), BD_ERROR_INDEX);
  CHECK_STATUS(run({1, 2}, {0, 2}, {1}, one, cache.cache), BD_ERROR_INDEX);
  CHECK_STATUS(run({1, 2}, {0, 1}, {2}, one, cache.cache), BD_ERROR_INDEX);
  CHECK_STATUS(bd_decoder_forward(decoder.decoder, cache.cache, bad, bad, 0, nullptr, 0, BD_OUTPUT_LOGITS, nullptr, 0), BD_ERROR_SHAPE);
  // Too long: nothing changes, for the sequence that would still fit neither.
  std::vector<int64_t> tokens(301, 1), sequences(301, 1);
  sequences[0] = 0;
  CHECK_STATUS(run(tokens, sequences, {}, 0, cache.cache), BD_ERROR_CONTEXT);
  CHECK((cache.lengths() == std::vector<int64_t>{1, 1}));
  tokens.resize(300);
  sequences.resize(300);
  CHECK_OK(run(tokens, sequences, {}, 0, cache.cache));
  CHECK((cache.lengths() == std::vector<int64_t>{2, 300}));
  CHECK_STATUS(bd_cache_reorder(cache.cache, bad, 2), BD_ERROR_INDEX);
  CHECK_STATUS(bd_cache_reorder(cache.cache, bad, 0), BD_ERROR_SHAPE);
  CHECK_STATUS(bd_cache_truncate(cache.cache, 0, 3), BD_ERROR_SHAPE);
  CHECK_STATUS(bd_cache_truncate(cache.cache, 2, 0), BD_ERROR_INDEX);
  int64_t lengths[3];
  CHECK_STATUS(bd_cache_lengths(cache.cache, lengths, 3), BD_ERROR_BUFFER_SIZE);

  // A model without a head has hidden states.
  bd_decoder_config headless = model.config;
  headless.head = {};
  bd_decoder* hidden = nullptr;
  CHECK_OK(bd_decoder_create(&headless, &hidden));
  bd_cache* hidden_cache = nullptr;
  CHECK_OK(bd_cache_create(hidden, 1, &hidden_cache));
  const int64_t token = 1, zero = 0;
  std::vector<float> state(static_cast<size_t>(options.hidden));
  CHECK_STATUS(bd_decoder_forward(hidden, hidden_cache, &token, &zero, 1, &zero, 1, BD_OUTPUT_LOGITS, out.data(), one), BD_ERROR_MODEL);
  CHECK_OK(bd_decoder_forward(hidden, hidden_cache, &token, &zero, 1, &zero, 1, BD_OUTPUT_HIDDEN, state.data(), state.size()));
  CHECK(std::any_of(state.begin(), state.end(), [](float x) { return x != 0.0f; }));
  bd_cache_destroy(hidden_cache);
  bd_decoder_destroy(hidden);
}

}  // namespace

int main(int argc, char** argv) {
  in_turn = argc > 1 && std::strcmp(argv[1], "in-turn") == 0;
  test_definition();
  test_batches();
  test_cache();
  test_not_a_number();
  test_not_a_number_behind();
  test_rows();
  test_stretches();
  test_failures();
  std::puts("decoder: ok");
}
