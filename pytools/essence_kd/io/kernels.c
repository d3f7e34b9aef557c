/* The inner loops of the essence core, for essence_kd/io/kernels.py, which compiles them where there is a C compiler.
   What they compute is defined by NumPy code (distill/essence.py, io/posterior.py) that takes their place where there
   is none.

   Legend: x is a matrix of float32, C columns, rows one after the other; k entries are kept of a row, ordered by
   falling value, ties by rising column. Columns are taken in groups of `depth` times LANES; the columns of a group
   with the same remainder by LANES are a block, so that the maxima of a group's blocks are what a vector unit makes of
   it. The k-th largest of the blocks' maxima is a bound that at least k elements reach: only blocks whose maximum
   reaches it are looked at again. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Rows of LANES in a group: 32 at most, fewer where that would leave less than about 6 k blocks. */
static int64_t depth_of(int64_t C, int64_t k) { return MAX(1, MIN(32, C / (6 * k))); }

/* An entry as one number: larger for larger values, then for lower ids. */
static inline uint64_t key_of(float value, int64_t id) {
  uint32_t bits;
  value += 0.0f; /* -0 is 0 */
  memcpy(&bits, &value, 4);
  bits ^= bits >> 31 ? 0xFFFFFFFFu : 0x80000000u;
  return (uint64_t)bits << 32 | (0xFFFFFFFFu - (uint32_t)id);
}

static inline void entry_of(uint64_t key, int32_t *id, float *value) {
  uint32_t bits = (uint32_t)(key >> 32);
  bits ^= bits >> 31 ? 0x80000000u : 0xFFFFFFFFu;
  memcpy(value, &bits, 4);
  *id = (int32_t)(0xFFFFFFFFu - (uint32_t)key);
}

static int falling(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? 1 : x > y ? -1 : 0;
}

static void sort(uint64_t *keys, int64_t n) {
  if (n > 48) {
    qsort(keys, n, sizeof(uint64_t), falling);
    return;
  }
  for (int64_t i = 1; i < n; i++) {
    uint64_t key = keys[i];
    int64_t j = i;
    for (; j > 0 && keys[j - 1] < key; j--) keys[j] = keys[j - 1];
    keys[j] = key;
  }
}

/* The k largest of what is offered: up to 2 k keys, of which those below the k-th largest so far are let go. */
typedef struct {
  uint64_t *keys, least;
  int64_t size, k;
} List;

static inline void offer(List *list, uint64_t key) {
  if (key < list->least) return;
  list->keys[list->size++] = key;
  if (list->size == 2 * list->k) {
    sort(list->keys, list->size);
    list->size = list->k;
    list->least = list->keys[list->k - 1];
  }
}

static void take(List *list, int32_t *ids, float *values) {
  sort(list->keys, list->size);
  for (int64_t i = 0; i < list->k; i++) entry_of(list->keys[i], ids + i, values + i);
}

/* The k-th largest of n maxima, -Inf when there are fewer. scratch: n floats. */
static float kth_largest(const float *maxima, int64_t n, float *scratch, int64_t k) {
  if (n < k) return -INFINITY;
  if (k <= 32) { /* the k largest so far, in order */
    int64_t size = 0;
    for (int64_t b = 0; b < n; b++) {
      float value = maxima[b];
      int64_t i = size;
      if (size == k) {
        if (!(value > scratch[k - 1])) continue;
        i = k - 1;
      } else {
        size++;
      }
      for (; i > 0 && scratch[i - 1] < value; i--) scratch[i] = scratch[i - 1];
      scratch[i] = value;
    }
    return scratch[k - 1];
  }
  memcpy(scratch, maxima, n * sizeof(float)); /* Hoare's selection */
  for (int64_t low = 0, high = n - 1; low < high;) {
    float pivot = scratch[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (scratch[i] > pivot) i++;
      while (scratch[j] < pivot) j--;
      if (i <= j) {
        float swapped = scratch[i];
        scratch[i++] = scratch[j];
        scratch[j--] = swapped;
      }
    }
    if (k - 1 <= j) high = j;
    else if (k - 1 >= i) low = i;
    else break;
  }
  return scratch[k - 1];
}

/* The k largest of each of T rows. Elements must lie in [low, high]; with tolerance > 0 a row's sum must be 1 within
   it. Returns the first row that breaks this, T when all are good, -1 without memory. */
int64_t top_k(const float *x, int64_t T, int64_t C, int64_t k, float low, float high, float tolerance, int32_t *ids,
              float *values) {
  int64_t depth = depth_of(C, k), width = depth * LANES, groups = (C + width - 1) / width, t;
  uint64_t *keys = malloc(2 * k * sizeof(uint64_t) + 2 * groups * LANES * sizeof(float));
  if (!keys) return -1;
  float *maxima = (float *)(keys + 2 * k), *scratch = maxima + groups * LANES;
  for (t = 0; t < T; t++) {
    const float *row = x + t * C;
    float sums[LANES] = {0}, total = 0;
    int32_t wrong[LANES] = {0}, bad = 0;
    for (int64_t g = 0; g < groups; g++) {
      const float *p = row + g * width;
      int64_t n = MIN(width, C - g * width), full = n / LANES * LANES;
      float best[LANES];
      for (int l = 0; l < LANES; l++) best[l] = -INFINITY;
      for (int64_t j = 0; j < full; j += LANES) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
          float value = p[j + l];
          best[l] = value > best[l] ? value : best[l];
          sums[l] += value;
          wrong[l] |= !(value >= low) | !(value <= high);
        }
      }
      for (int64_t j = full; j < n; j++) {
        best[j - full] = p[j] > best[j - full] ? p[j] : best[j - full];
        total += p[j];
        bad |= !(p[j] >= low) | !(p[j] <= high);
      }
      memcpy(maxima + g * LANES, best, sizeof best);
    }
    for (int l = 0; l < LANES; l++) total += sums[l], bad |= wrong[l];
    if (bad || (tolerance > 0 && !(fabsf(total - 1) <= tolerance))) break;
    float bound = kth_largest(maxima, groups * LANES, scratch, k);
    List list = {keys, 0, 0, k};
    for (int64_t b = 0; b < groups * LANES; b++) {
      if (!(maxima[b] >= bound)) continue;
      int64_t end = MIN(C, (b / LANES + 1) * width);
      for (int64_t c = b / LANES * width + b % LANES; c < end; c += LANES)
        if (row[c] >= bound) offer(&list, key_of(row[c], c));
    }
    take(&list, ids + t * k, values + t * k);
  }
  free(keys);
  return t;
}

/* The k largest of p(c) = sum_m exp(z_m(c) - norm_m(t)) weight_m over M matrices z_m, as distill/essence.py derives it.
   norms: M times T doubles. Values are p rounded to float32. Returns the first row with a NaN or +Inf, or with a p
   above high; T when all are good; -1 without memory. */
int64_t top_k_of_mixture(const float *const *z, const double *norms, const double *weights, int64_t M, int64_t T,
                         int64_t C, int64_t k, float high, int32_t *ids, float *values) {
  int64_t depth = depth_of(C, k), width = depth * LANES, groups = (C + width - 1) / width, t;
  uint64_t *keys = malloc(2 * k * sizeof(uint64_t) + (2 * groups * LANES + M) * sizeof(float));
  if (!keys) return -1;
  float *maxima = (float *)(keys + 2 * k), *scratch = maxima + groups * LANES, *shifts = scratch + groups * LANES;
  for (t = 0; t < T; t++) {
    int32_t wrong[LANES] = {0}, bad = 0;
    float slack = 1e-4f; /* what the rounding of z - shift may hide */
    for (int64_t m = 0; m < M; m++) {
      shifts[m] = (float)(norms[m * T + t] - log(weights[m]));
      slack = MAX(slack, 4e-7f * fabsf(shifts[m]));
    }
    for (int64_t g = 0; g < groups; g++) {
      int64_t n = MIN(width, C - g * width), full = n / LANES * LANES;
      float best[LANES];
      for (int l = 0; l < LANES; l++) best[l] = -INFINITY;
      for (int64_t m = 0; m < M; m++) {
        const float *p = z[m] + t * C + g * width;
        float shift = shifts[m];
        for (int64_t j = 0; j < full; j += LANES) {
#pragma omp simd
          for (int l = 0; l < LANES; l++) {
            float value = p[j + l] - shift;
            best[l] = value > best[l] ? value : best[l];
            wrong[l] |= !(value <= FLT_MAX);
          }
        }
        for (int64_t j = full; j < n; j++) {
          float value = p[j] - shift;
          best[j - full] = value > best[j - full] ? value : best[j - full];
          bad |= !(value <= FLT_MAX);
        }
      }
      memcpy(maxima + g * LANES, best, sizeof best);
    }
    for (int l = 0; l < LANES; l++) bad |= wrong[l];
    if (bad) break;
    /* exp(best) <= p <= M exp(best). Near float32's smallest numbers probabilities tie over a wide range of logs:
       there every class counts. */
    float bound = kth_largest(maxima, groups * LANES, scratch, k);
    bound = bound < -85 ? -INFINITY : bound - (float)log((double)M) - slack;
    List list = {keys, 0, 0, k};
    for (int64_t b = 0; b < groups * LANES; b++) {
      if (!(maxima[b] >= bound)) continue;
      int64_t end = MIN(C, (b / LANES + 1) * width);
      for (int64_t c = b / LANES * width + b % LANES; c < end; c += LANES) {
        int near = 0;
        for (int64_t m = 0; m < M; m++) near |= z[m][t * C + c] - shifts[m] >= bound;
        if (!near) continue;
        double p = 0;
        for (int64_t m = 0; m < M; m++) p += weights[m] * exp((double)z[m][t * C + c] - norms[m * T + t]);
        offer(&list, key_of((float)p, c));
      }
    }
    take(&list, ids + t * k, values + t * k);
    if (!(values[t * k] <= high)) break;
  }
  free(keys);
  return t;
}

/* Probabilities of T rows that reach the threshold, and where starts is given, systematic samples of the others: a mark
   every `threshold` along the running sum of the small ones, the first at starts[t] * threshold before it; a small one
   on which a mark falls is kept at the threshold. A row that would be empty keeps its largest. Entries are ordered;
   row t has counts[t] <= capacity of them. Returns as top_k does; a row with more entries than capacity breaks too. */
int64_t over_threshold(const float *x, int64_t T, int64_t C, float threshold, const double *starts, float high,
                       float tolerance, int64_t capacity, int64_t *counts, int32_t *ids, float *values) {
  enum { BLOCK = 64 };
  int64_t t;
  uint64_t *keys = malloc(capacity * sizeof(uint64_t));
  if (!keys) return -1;
  for (t = 0; t < T; t++) {
    const float *row = x + t * C;
    double position = starts ? starts[t] : 0, total = 0;
    float largest = -1;
    int64_t kept = 0, largest_id = 0;
    int bad = 0;
    for (int64_t b = 0; b < C && !bad; b += BLOCK) {
      const float *p = row + b;
      int n = (int)MIN(BLOCK, C - b);
      float best = -INFINITY;
      double small = 0;
      if (n == BLOCK) {
#pragma omp simd reduction(max : best) reduction(+ : small) reduction(| : bad)
        for (int j = 0; j < BLOCK; j++) {
          best = p[j] > best ? p[j] : best;
          small += p[j] >= threshold ? 0 : p[j];
          bad |= !(p[j] >= 0);
        }
      } else {
        for (int j = 0; j < n; j++) {
          best = p[j] > best ? p[j] : best;
          small += p[j] >= threshold ? 0 : p[j];
          bad |= !(p[j] >= 0);
        }
      }
      bad |= !(best <= high);
      if (bad) break;
      total += small;
      double end = starts ? position + small / (double)threshold : position;
      if (best > largest) {
        largest = best;
        for (largest_id = b; row[largest_id] != best; largest_id++) {}
      }
      if (best >= threshold || floor(end) != floor(position)) {
        double inner = position;
        for (int j = 0; j < n; j++) {
          float value = p[j];
          if (value < threshold) {
            if (!starts) continue;
            double before = floor(inner);
            inner += (double)value / (double)threshold;
            if (floor(inner) == before) continue;
            value = threshold;
          } else {
            total += value;
          }
          if (kept == capacity) {
            bad = 1;
            break;
          }
          keys[kept++] = key_of(value, b + j);
        }
      }
      position = end;
    }
    if (bad || !(fabs(total - 1) <= tolerance)) break;
    if (kept == 0) keys[kept++] = key_of(largest, largest_id);
    sort(keys, kept);
    for (int64_t i = 0; i < kept; i++) entry_of(keys[i], ids + t * capacity + i, values + t * capacity + i);
    counts[t] = kept;
  }
  free(keys);
  return t;
}

/* Kaldi's binary Posterior: cells of five bytes, the byte 4 and 32 bits. Little-endian machines only. */
static inline int32_t cell(const uint8_t *p) {
  int32_t value;
  memcpy(&value, p + 1, 4);
  return value;
}

/* The lengths of T frames at `data` (n bytes): offsets (T + 1). Returns the bytes they take, -1 when they do not end in
   n bytes, -2 when they are damaged. */
int64_t posterior_offsets(const uint8_t *data, int64_t n, int64_t T, int64_t *offsets) {
  int64_t at = 0;
  offsets[0] = 0;
  for (int64_t t = 0; t < T; t++) {
    if (n - at < 5) return -1;
    int32_t count = cell(data + at);
    if (data[at] != 4 || count < 0) return -2;
    at += 5;
    if ((n - at) / 10 < count) return -1;
    at += 10 * (int64_t)count;
    offsets[t + 1] = offsets[t] + count;
  }
  return at;
}

/* The entries of T frames whose offsets are known (NULL: k a frame). Returns 1, or 0 when a cell is not marked as 32
   bits wide, a pdf-id is not below the smallest normal float, or a weight is not finite. */
int64_t posterior_entries(const uint8_t *restrict data, int64_t T, int64_t k, const int64_t *offsets,
                          int32_t *restrict ids, float *restrict probs) {
  int32_t *id = ids;
  float *prob = probs;
  uint64_t bad = 0;
  uint32_t endless = 0;
  for (int64_t t = 0; t < T; t++) {
    int64_t count = offsets ? offsets[t + 1] - offsets[t] : k;
    if (bad || data[0] != 4 || cell(data) != count) return 0;
    data += 5;
    for (int64_t i = 0; i < count; i++, data += 10) {
      uint64_t head; /* the byte 4, the pdf-id, the byte 4, and two bytes of the weight */
      memcpy(&head, data, 8);
      memcpy(prob + i, data + 6, 4);
      id[i] = (int32_t)(head >> 8);
      bad |= (head & 0x0000FFFF800000FFu) ^ 0x0000040000000004u;
    }
    id += count;
    prob += count;
  }
  for (int64_t i = 0; i < prob - probs; i++) {
    uint32_t bits;
    memcpy(&bits, probs + i, 4);
    endless |= (bits & 0x7F800000u) + 0x00800000u; /* an exponent of ones overflows into the sign */
  }
  return !bad && !(endless & 0x80000000u);
}
