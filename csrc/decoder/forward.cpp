#include "decoder/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "core/status.h"
#include "core/thread_pool.h"
#include "decoder/attention.h"
#include "decoder/routing.h"
#include "kernels/kernels.h"
#include "kernels/linear.h"

namespace bitdistill {
namespace {

// Tokens that go through the layers together. Enough to use every weight many times, few enough for their activations
// to stay near the cores.
constexpr int64_t kChunkTokens = 512;

// Less work than this (elements; multiply-adds of floats) is done by the calling thread alone.
constexpr int64_t kElementsPerTask = 16384;

// Rows of a matrix of floats that a task multiplies, at most.
constexpr int64_t kDenseRowsPerTask = 512;

struct Workspace {
  QuantizedActivations activations;
  AlignedBuffer hidden, normed, sub_normed, qkv, heads, gate_up, inner, projected, rotation, gathered, expert_output, router,
      ordered;
  AlignedBuffer adapter_input, adapter_inner;
  std::vector<int64_t> positions;
  Routing routing;
  std::vector<Run> runs;
};

thread_local Workspace t_workspace;

float* reserve(AlignedBuffer& buffer, int64_t count) {
  if (!buffer.reserve(static_cast<size_t>(count) * sizeof(float))) throw std::bad_alloc();
  return buffer.as<float>();
}

// body(token) for all tokens of the chunk, `elements` of work each.
template <typename F>
void for_tokens(int64_t tokens, int64_t elements, F&& body) {
  const int64_t per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, elements));
  if (tokens <= per_task) {
    for (int64_t t = 0; t < tokens; ++t) body(t);
    return;
  }
  parallel_for(div_up(tokens, per_task), [&](int64_t task) {
    const int64_t stop = std::min(tokens, (task + 1) * per_task);
    for (int64_t t = task * per_task; t < stop; ++t) body(t);
  });
}

class Chunk {
 public:
  Chunk(const Model& model, const Kernels& kernels, const PageLayout& layout, const ForwardTask& task, int64_t first,
        int64_t count, Workspace& workspace)
      : model_(model), kernels_(kernels), floats_(*kernels.floats()), layout_(layout), task_(task), first_(first),
        tokens_(count), w_(workspace), attention_(model, floats_, layout, workspace.runs) {}

  int run(bd_cache& cache) {
    find_positions(cache);
    embed();
    prepare_rotation();
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      BD_RETURN_IF_ERROR(attention(model_.layers[i], static_cast<int64_t>(i)));
      BD_RETURN_IF_ERROR(feedforward(model_.layers[i]));
    }
    BD_RETURN_IF_ERROR(outputs());
    for (const Run& run : w_.runs) run.sequence->set_length(run.position + run.count);
    return BD_OK;
  }

 private:
  void find_positions(bd_cache& cache) {
    w_.positions.resize(static_cast<size_t>(tokens_));
    w_.runs.clear();
    for (int64_t t = 0; t < tokens_; ++t) {
      const int64_t number = task_.sequences[first_ + t];
      if (t == 0 || number != task_.sequences[first_ + t - 1]) {
        Sequence& sequence = cache.sequences[static_cast<size_t>(number)];
        w_.runs.push_back({t, 0, &sequence, sequence.length(), 0});
      }
      Run& run = w_.runs.back();
      w_.positions[static_cast<size_t>(t)] = run.position + run.count++;
    }
    attention_.plan();
  }

  void embed() {
    h_ = reserve(w_.hidden, tokens_ * model_.hidden_size);
    const Table& table = model_.embedding;
    for_tokens(tokens_, model_.hidden_size, [&](int64_t t) {
      float* const h = h_ + t * model_.hidden_size;
      read_row(table, task_.tokens[first_ + t], h);
      if (model_.embedding_scale != 1.0f) {
        for (int64_t i = 0; i < model_.hidden_size; ++i) h[i] *= model_.embedding_scale;
      }
    });
  }

  void read_row(const Table& table, int64_t row, float* out) const {
    if (table.packed()) return dequantize_row(table.matrix, row, out);
    if (table.is_split()) return dequantize_row(table.split, row, out);
    floats_.widen(table.kind, table.float_row(row), table.cols, out);
  }

  // cos and sin of every token and rope, [ropes][tokens][2][half], float32 as transformers computes them.
  void prepare_rotation() {
    int64_t total = 0;
    rotation_start_.clear();
    for (const Rope& rope : model_.ropes) {
      rotation_start_.push_back(total);
      total += tokens_ * 2 * static_cast<int64_t>(rope.inv_freq.size());
    }
    rotation_ = reserve(w_.rotation, std::max<int64_t>(total, 1));
    for (size_t i = 0; i < model_.ropes.size(); ++i) {
      const Rope& rope = model_.ropes[i];
      const int64_t half = static_cast<int64_t>(rope.inv_freq.size());
      for_tokens(tokens_, half * 32, [&](int64_t t) {
        float* const cos = rotation_ + rotation_start_[i] + t * 2 * half;
        for (int64_t j = 0; j < half; ++j) {
          const float angle = static_cast<float>(w_.positions[static_cast<size_t>(t)]) * rope.inv_freq[static_cast<size_t>(j)];
          cos[j] = std::cos(angle) * rope.attention_scaling;
          cos[half + j] = std::sin(angle) * rope.attention_scaling;
        }
      });
    }
  }

  // out [tokens, rows of all projections] = projections(norm(x [tokens, cols])).
  int project(const Projection* projections, size_t count, const NormWeights* norm, const float* x, int64_t tokens,
              int64_t cols, float* out, int64_t out_stride) {
    BD_RETURN_IF_ERROR(multiply_weights(projections, count, norm, x, tokens, cols, out, out_stride));
    const float* input = nullptr;
    for (size_t i = 0; i < count; ++i) {
      if (projections[i].a.exists()) {
        if (input == nullptr) {
          input = norm != nullptr && norm->exists() ? norm_tokens(*norm, x, tokens, cols, w_.adapter_input) : x;
        }
        add_adapter(projections[i], input, tokens, cols, out, out_stride);
      }
      out += projections[i].weight.rows;
    }
    return BD_OK;
  }

  // out [tokens, rows] += (a . sub_norm(x [tokens, cols])) . b
  void add_adapter(const Projection& projection, const float* x, int64_t tokens, int64_t cols, float* out, int64_t out_stride) {
    const NormWeights& own = projection.sub_norm;
    if (own.exists()) x = norm_tokens(own, x, tokens, cols, w_.sub_normed);
    const int64_t rank = projection.a.rows, rows = projection.b.cols;
    float* const inner = reserve(w_.adapter_inner, tokens * rank);
    multiply_floats(projection.a, x, tokens, inner, rank);
    const float* const b = reinterpret_cast<const float*>(projection.b.data);
    for_tokens(tokens, rank * rows, [&](int64_t t) { floats_.expand(inner + t * rank, rank, b, rows, out + t * out_stride); });
  }

  int multiply_weights(const Projection* projections, size_t count, const NormWeights* norm, const float* x, int64_t tokens,
                       int64_t cols, float* out, int64_t out_stride) {
    MultiplyPart parts[kMaxParts];
    int64_t row = 0;
    bool one_input = true;  // the same integers for all of them
    for (size_t i = 0; i < count; ++i) {
      parts[i].matrix = &projections[i].weight.matrix;
      parts[i].output.bias = projections[i].bias_or_null();
      parts[i].output.out = out + row;
      parts[i].output.out_stride = out_stride;
      row += projections[i].weight.rows;
      one_input &= projections[i].weight.packed() && !projections[i].sub_norm.exists();
    }
    const bool normed = norm != nullptr && norm->exists();
    if (one_input) {
      BD_RETURN_IF_ERROR(w_.activations.quantize(kernels_, x, BD_FLOAT32, tokens, cols, normed ? norm->as_norm() : Norm{}));
      return multiply(kernels_, parts, static_cast<int>(count), w_.activations);
    }
    if (normed) x = norm_tokens(*norm, x, tokens, cols, w_.normed);
    for (size_t i = 0; i < count; ++i) {
      const Projection& projection = projections[i];
      if (projection.weight.packed()) {
        BD_RETURN_IF_ERROR(w_.activations.quantize(kernels_, x, BD_FLOAT32, tokens, cols, projection.sub_norm.as_norm()));
        BD_RETURN_IF_ERROR(multiply(kernels_, parts + i, 1, w_.activations));
        continue;
      }
      const NormWeights& own = projection.sub_norm;
      const float* const input = own.exists() ? norm_tokens(own, x, tokens, cols, w_.sub_normed) : x;
      multiply_floats(projection.weight, input, tokens, parts[i].output.out, out_stride);
      if (projection.bias.empty()) continue;
      const int64_t rows = projection.weight.rows;
      for_tokens(tokens, rows,
                 [&](int64_t t) { floats_.add(projection.bias.data(), rows, parts[i].output.out + t * out_stride); });
    }
    return BD_OK;
  }

  const float* norm_tokens(const NormWeights& norm, const float* x, int64_t tokens, int64_t cols, AlignedBuffer& buffer) {
    float* const out = reserve(buffer, tokens * cols);
    for_tokens(tokens, cols,
               [&](int64_t t) { floats_.rms_norm(x + t * cols, cols, norm.weight.data(), norm.eps, out + t * cols); });
    return out;
  }

  // out [tokens, rows] = x [tokens, cols] times a matrix of floats.
  void multiply_floats(const Table& table, const float* x, int64_t tokens, float* out, int64_t out_stride) const {
    if (table.rows * table.cols * tokens <= kElementsPerTask) {
      return floats_.dense(table.kind, table.data, table.rows, table.cols, x, tokens, out, out_stride);
    }
    // Four rows share what is read of x.
    const int64_t share = round_up(div_up(table.rows, 4 * num_threads()), 4);
    const int64_t rows = std::min(kDenseRowsPerTask, share);
    parallel_for(div_up(table.rows, rows), [&](int64_t task) {
      const int64_t row = task * rows;
      floats_.dense(table.kind, table.float_row(row), std::min(rows, table.rows - row), table.cols, x, tokens, out + row,
                    out_stride);
    });
  }

  // h += norm(x [tokens, hidden])
  void add_residual(const NormWeights& norm, float* x) {
    const int64_t n = model_.hidden_size;
    for_tokens(tokens_, n, [&](int64_t t) {
      if (norm.exists()) floats_.rms_norm(x + t * n, n, norm.weight.data(), norm.eps, x + t * n);
      floats_.add(x + t * n, n, h_ + t * n);
    });
  }

  void normalise_heads(const NormWeights& norm, float* heads, int64_t count) const {
    const int64_t n = static_cast<int64_t>(norm.weight.size());
    for (int64_t i = 0; i < count * model_.head_dim; i += n) {
      floats_.rms_norm(heads + i, n, norm.weight.data(), norm.eps, heads + i);
    }
  }

  // A key goes into a line for every two of its elements; for a single token none of them is near.
  void prefetch_key_block(uint8_t* page, int64_t layer_index, int64_t position) const {
    if (tokens_ >= kKeyBlock) return;
    const int64_t bytes = static_cast<int64_t>(layout_.key_block_bytes);
    for (int64_t i = 0; i < model_.kv_heads; ++i) {
      const uint8_t* const block = page + layout_.keys(layer_index, i) + position % kPagePositions / kKeyBlock * bytes;
      for (int64_t line = 0; line < bytes; line += BD_ALIGNMENT) __builtin_prefetch(block + line, 1);
    }
  }

  // Norms and rotates queries and keys, and writes keys and values to the cache.
  void finish_qkv(const Layer& layer, int64_t layer_index, float* qkv) {
    const int64_t half =
        layer.rope < 0 ? 0 : static_cast<int64_t>(model_.ropes[static_cast<size_t>(layer.rope)].inv_freq.size());
    const auto finish = [&](const Run& run, int64_t t) {
      const int64_t position = w_.positions[static_cast<size_t>(t)];
      uint8_t* const page = run.sequence->writable_page(position);
      prefetch_key_block(page, layer_index, position);
      float* const q = qkv + t * model_.qkv_size();
      float* const k = q + model_.q_size();
      const float* const v = k + model_.kv_size();
      if (layer.q_norm.exists()) normalise_heads(layer.q_norm, q, model_.heads);
      if (layer.k_norm.exists()) normalise_heads(layer.k_norm, k, model_.kv_heads);
      if (layer.rope >= 0) {
        const float* const cos = rotation_ + rotation_start_[static_cast<size_t>(layer.rope)] + t * 2 * half;
        for (int64_t i = 0; i < model_.heads + model_.kv_heads; ++i) {
          floats_.rotate(q + i * model_.head_dim, cos, cos + half, half);
        }
      }
      for (int64_t i = 0; i < model_.kv_heads; ++i) {
        floats_.store_key_value(k + i * model_.head_dim, v + i * model_.head_dim, model_.head_dim, model_.kv_dtype,
                                position % kPagePositions, page + layout_.keys(layer_index, i),
                                page + layout_.values(layer_index, i));
      }
    };
    for (const Run& run : w_.runs) {
      for_tokens(run.count, 2 * model_.qkv_size(), [&](int64_t t) { finish(run, run.first + t); });
    }
  }

  int attention(const Layer& layer, int64_t layer_index) {
    float* const qkv = reserve(w_.qkv, tokens_ * model_.qkv_size());
    BD_RETURN_IF_ERROR(project(layer.qkv.data(), layer.qkv.size(), &layer.input_norm, h_, tokens_, model_.hidden_size, qkv,
                               model_.qkv_size()));
    finish_qkv(layer, layer_index, qkv);
    float* const heads = reserve(w_.heads, tokens_ * model_.q_size());
    BD_RETURN_IF_ERROR(attention_.attend(layer_index, qkv, heads));
    float* const projected = reserve(w_.projected, tokens_ * model_.hidden_size);
    BD_RETURN_IF_ERROR(project(&layer.o, 1, nullptr, heads, tokens_, model_.q_size(), projected, model_.hidden_size));
    add_residual(layer.post_attention_norm, projected);
    return BD_OK;
  }

  // out [tokens, hidden] = mlp(norm(x [tokens, hidden]))
  int perceptron(const Mlp& mlp, const NormWeights* norm, const float* x, int64_t tokens, float* out) {
    const int64_t n = mlp.intermediate_size();
    const int64_t width = 2 * n;
    float* const gate_up = reserve(w_.gate_up, tokens * width);
    BD_RETURN_IF_ERROR(project(mlp.gate_up.data(), mlp.gate_up.size(), norm, x, tokens, model_.hidden_size, gate_up, width));
    float* const inner = reserve(w_.inner, tokens * n);
    for_tokens(tokens, 4 * n, [&](int64_t t) {
      const float* const row = gate_up + t * width;
      floats_.activate(model_.activation, row, row + n, n, inner + t * n);
    });
    return project(&mlp.down, 1, nullptr, inner, tokens, n, out, model_.hidden_size);
  }

  // out [tokens, hidden] = the sum of each token's experts
  int mixture(const Layer& layer, float* out) {
    const int64_t n = model_.hidden_size;
    const NormWeights& norm = layer.pre_feedforward_norm;
    const float* const x = norm.exists() ? norm_tokens(norm, h_, tokens_, n, w_.normed) : h_;
    Routing& routing = w_.routing;
    float* const logits = reserve(w_.router, tokens_ * layer.router.rows);
    multiply_floats(layer.router, x, tokens_, logits, layer.router.rows);
    routing.route(logits, tokens_, layer.router.rows, layer.experts_per_token, layer.normalise);
    std::fill(out, out + tokens_ * n, 0.0f);
    for (size_t e = 0; e < layer.mlps.size(); ++e) {
      const std::vector<Routed>& routed = routing.tokens_of(e);
      const int64_t count = static_cast<int64_t>(routed.size());
      if (count == 0) continue;
      float* const gathered = reserve(w_.gathered, count * n);
      float* const output = reserve(w_.expert_output, count * n);
      for_tokens(count, n, [&](int64_t i) { std::copy_n(x + routed[static_cast<size_t>(i)].token * n, n, gathered + i * n); });
      BD_RETURN_IF_ERROR(perceptron(layer.mlps[e], nullptr, gathered, count, output));
      for_tokens(count, n, [&](int64_t i) {
        const Routed& r = routed[static_cast<size_t>(i)];
        for (int64_t j = 0; j < n; ++j) out[r.token * n + j] += r.weight * output[i * n + j];
      });
    }
    return BD_OK;
  }

  int feedforward(const Layer& layer) {
    float* const projected = reserve(w_.projected, tokens_ * model_.hidden_size);
    if (layer.router.exists()) {
      BD_RETURN_IF_ERROR(mixture(layer, projected));
    } else {
      BD_RETURN_IF_ERROR(perceptron(layer.mlps[0], &layer.pre_feedforward_norm, h_, tokens_, projected));
    }
    add_residual(layer.post_feedforward_norm, projected);
    return BD_OK;
  }

  // The outputs asked for among the tokens of this chunk; neighbours in `out` together.
  int outputs() {
    const int64_t n = model_.hidden_size;
    for (int64_t i = 0; i < task_.output_count;) {
      if (!in_chunk(task_.output_index[i])) {
        ++i;
        continue;
      }
      int64_t stop = i;
      while (stop < task_.output_count && stop - i < kChunkTokens && in_chunk(task_.output_index[stop])) ++stop;
      float* const rows = reserve(w_.normed, (stop - i) * n);
      for (int64_t j = i; j < stop; ++j) {
        const float* const h = h_ + (task_.output_index[j] - first_) * n;
        float* const row = rows + (j - i) * n;
        if (model_.final_norm.exists()) floats_.rms_norm(h, n, model_.final_norm.weight.data(), model_.final_norm.eps, row);
        else std::memcpy(row, h, static_cast<size_t>(n) * sizeof(float));
      }
      BD_RETURN_IF_ERROR(write_outputs(rows, i, stop - i));
      i = stop;
    }
    return BD_OK;
  }

  bool in_chunk(int64_t token) const { return token >= first_ && token < first_ + tokens_; }

  int write_outputs(const float* rows, int64_t first, int64_t count) {
    const int64_t n = model_.hidden_size, width = model_.vocab_size;
    if (task_.output == BD_OUTPUT_HIDDEN) {
      std::memcpy(task_.out + first * n, rows, static_cast<size_t>(count * n) * sizeof(float));
      return BD_OK;
    }
    float* const out = task_.out + first * width;
    const Table& head = model_.head;
    if (head.is_split()) {
      float* const ordered = reserve(w_.ordered, count * n);
      for (int64_t t = 0; t < count; ++t) order_columns(head.split, rows + t * n, ordered + t * n);
      BD_RETURN_IF_ERROR(w_.activations.quantize(kernels_, ordered, BD_FLOAT32, count, n, Norm{}));
      // A cap may make outputs equal that were not, and then the first of them is the greatest.
      const bool greatest = task_.output == BD_OUTPUT_GREATEST && model_.logit_softcap == 0.0f;
      multiply_split(kernels_, head.split, w_.activations, greatest, out, width);
    } else if (head.packed()) {
      BD_RETURN_IF_ERROR(w_.activations.quantize(kernels_, rows, BD_FLOAT32, count, n, Norm{}));
      Output output;
      output.out = out;
      output.out_stride = width;
      BD_RETURN_IF_ERROR(multiply(kernels_, head.matrix, w_.activations, output));
    } else {
      multiply_floats(head, rows, count, out, width);
    }
    if (model_.logit_softcap != 0.0f) {
      for_tokens(count, width, [&](int64_t t) { floats_.softcap(model_.logit_softcap, width, out + t * width); });
    }
    return BD_OK;
  }

  const Model& model_;
  const Kernels& kernels_;
  const FloatKernels& floats_;
  const PageLayout& layout_;
  const ForwardTask& task_;
  const int64_t first_, tokens_;
  Workspace& w_;
  float* h_ = nullptr;
  float* rotation_ = nullptr;
  std::vector<int64_t> rotation_start_;
  Attention attention_;
};

// Gives every sequence its old length back, unless the pass came to its end.
class Rollback {
 public:
  explicit Rollback(bd_cache& cache) : cache_(cache) {
    for (const Sequence& s : cache.sequences) lengths_.push_back(s.length());
  }
  ~Rollback() {
    if (done) return;
    for (size_t i = 0; i < lengths_.size(); ++i) cache_.sequences[i].truncate(lengths_[i]);
  }
  bool done = false;

 private:
  bd_cache& cache_;
  std::vector<int64_t> lengths_;
};

}  // namespace

int forward(const Model& model, bd_cache& cache, const ForwardTask& task) {
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  Rollback rollback(cache);
  for (int64_t t = 0; t < task.token_count;) {
    int64_t stop = t + 1;
    while (stop < task.token_count && task.sequences[stop] == task.sequences[t]) ++stop;
    Sequence& sequence = cache.sequences[static_cast<size_t>(task.sequences[t])];
    const int64_t length = sequence.length() + stop - t;
    if (length > model.max_positions) return BD_ERROR_CONTEXT;
    sequence.reserve(length, cache.layout);
    t = stop;
  }
  for (int64_t first = 0; first < task.token_count; first += kChunkTokens) {
    const int64_t count = std::min(kChunkTokens, task.token_count - first);
    BD_RETURN_IF_ERROR(Chunk(model, *kernels, cache.layout, task, first, count, t_workspace).run(cache));
  }
  rollback.done = true;
  return BD_OK;
}

}  // namespace bitdistill
