/* io/kernels.c under libFuzzer, with address and undefined-behaviour sanitizers (tests/fuzz/run.sh kernels).

   The first bytes of an input choose a function and its sizes, within what its Python callers ask for; the rest is its
   data. Outputs are allocated to the byte, so that a write beyond them is seen, and must be what they are defined to
   be. */
#include "../../pytools/essence_kd/io/kernels.c"

#include <stdio.h>

static const uint8_t *at, *end;

static uint32_t take(int64_t size) {
  uint32_t value = 0;
  for (int64_t i = 0; i < size; i++) value = value << 8 | (at < end ? *at++ : 0);
  return value;
}

/* A size from 1 on, small ones more often: the larger, the fewer inputs a second. */
static int64_t size(void) {
  static const int64_t most[] = {4, 40, 160, 700, 8, 8, 20, 20};
  int64_t kind = take(1) % 8;
  return 1 + take(2) % most[kind];
}

static void fail(const char *what) {
  fprintf(stderr, "wrong: %s\n", what);
  abort();
}

/* n floats of the data, which is repeated where it is too short; `kind` makes them logs, probabilities, any bits. */
static float *floats(int64_t n, int kind) {
  float *made = malloc(n * sizeof(float) + 1);
  const uint8_t *from = at;
  for (int64_t i = 0; i < n; i++) {
    uint8_t bytes[4] = {0};
    for (int b = 0; b < 4 && at < end; b++) {
      bytes[b] = *from++;
      if (from == end) from = at;
    }
    if (kind == 0) memcpy(made + i, bytes, 4);
    else if (kind == 1) made[i] = bytes[0] / 8.0f - 20;
    else made[i] = bytes[0] / 256.0f;
  }
  return made;
}

static void normalise(float *x, int64_t T, int64_t C) {
  for (int64_t t = 0; t < T; t++) {
    double sum = 0;
    for (int64_t c = 0; c < C; c++) sum += x[t * C + c];
    for (int64_t c = 0; c < C; c++) x[t * C + c] = sum > 0 ? (float)(x[t * C + c] / sum) : 1.0f / C;
  }
}

/* Whether these are the k largest of a row: each is there, they fall, and no other reaches the last. */
static void plain(const float *row, int64_t C, int64_t k, const int32_t *ids, const float *values) {
  uint64_t last = UINT64_MAX;
  int64_t reached = 0;
  for (int64_t i = 0; i < k; i++) {
    if (ids[i] < 0 || ids[i] >= C) fail("an id");
    float there = row[ids[i]] + 0.0f;
    uint64_t key = key_of(there, ids[i]);
    if (memcmp(&there, values + i, 4) || key >= last) fail("a value, or the order");
    last = key;
  }
  for (int64_t c = 0; c < C; c++) reached += key_of(row[c], c) >= last;
  if (reached != k) fail("not the k largest");
}

/* The same matrix in a file, at an odd place. */
static int64_t in_file(const float *x, int64_t bytes, int64_t start) {
  static int fd = -1;
  if (fd < 0) fd = fileno(tmpfile());
  if (ftruncate(fd, 0) || pwrite(fd, x, bytes, start) != bytes) fail("the file could not be written");
  return fd;
}

static void fuzz_top_k(void) {
  int64_t T = 1 + take(1) % 3, C = size(), k = 1 + take(2) % C, file = take(1) % 16 == 1, start = take(1);
  int kind = take(1) % 3, probs = take(1) % 2;
  float *x = floats(T * C, kind);
  if (probs && kind == 2) normalise(x, T, C);
  int32_t *ids = malloc(T * k * 4);
  float *values = malloc(T * k * 4);
  int64_t fd = file ? in_file(x, T * C * 4, start) : 0;
  float low = probs ? 0 : -INFINITY, high = probs ? 1.001f : FLT_MAX, tolerance = probs ? 0.001f : 0;
  int64_t done = top_k(file ? NULL : x, fd, start, T, C, k, low, high, tolerance, ids, values);
  if (done < 0 || done > T) fail("rows done");
  for (int64_t t = 0; t < done; t++) plain(x + t * C, C, k, ids + t * k, values + t * k);
  if (done < T) { /* refused: a NaN, something out of range, a sum, or what seems to be one */
    int bad = probs;
    for (int64_t c = 0; c < C; c++) bad |= !(x[done * C + c] >= -1e30f && x[done * C + c] <= 1e30f);
    if (!bad) fail("a good row was refused");
  }
  free(x), free(ids), free(values);
}

static void fuzz_mixture(void) {
  int64_t M = 1 + take(1) % 4, T = 1 + take(1) % 3, C = size(), k = 1 + take(2) % C;
  int kind = take(1) % 2;
  const float *z[4];
  double norms[12], weights[4];
  for (int64_t m = 0; m < M; m++) {
    weights[m] = 1.0 / M;
    for (int64_t t = 0; t < T; t++) norms[m * T + t] = (double)take(1) / 8 + 5;
  }
  for (int64_t m = 0; m < M; m++) {
    at += at < end;
    z[m] = floats(T * C, kind);
  }
  int32_t *ids = malloc(T * k * 4);
  float *values = malloc(T * k * 4);
  int64_t done = top_k_of_mixture(z, norms, weights, M, T, C, k, 1e30f, ids, values);
  if (done < 0 || done > T) fail("rows done");
  for (int64_t t = 0; t < done; t++) {
    float *p = malloc(C * 4);
    for (int64_t c = 0; c < C; c++) {
      double sum = 0;
      for (int64_t m = 0; m < M; m++) sum += weights[m] * exp((double)z[m][t * C + c] - norms[m * T + t]);
      p[c] = (float)sum;
    }
    plain(p, C, k, ids + t * k, values + t * k);
    free(p);
  }
  for (int64_t m = 0; m < M; m++) free((void *)z[m]);
  free(ids), free(values);
}

static void fuzz_over_threshold(void) {
  int64_t T = 1 + take(1) % 3, C = size(), file = take(1) % 16 == 1, start = take(1), sampled = take(1) % 2;
  float threshold = (1 + take(2) % 4096) / 4096.0f;
  int kind = take(1) % 8 ? 2 : 0;
  double starts[3];
  for (int64_t t = 0; t < T; t++) starts[t] = take(1) / 256.0;
  int64_t most = MIN(C, (int64_t)(1.001 / threshold + 1) * (sampled ? 2 : 1) + 2);
  float *x = floats(T * C, kind);
  if (kind == 2) normalise(x, T, C);
  int32_t *ids = malloc(T * most * 4);
  float *values = malloc(T * most * 4);
  int64_t *counts = malloc(T * 8);
  int64_t fd = file ? in_file(x, T * C * 4, start) : 0;
  int64_t done = over_threshold(file ? NULL : x, fd, start, T, C, threshold, sampled ? starts : NULL, 1.001f, 0.00099f,
                                most, counts, ids, values);
  if (done < 0 || done > T) fail("rows done");
  for (int64_t t = 0; t < done; t++) {
    if (counts[t] < 1 || counts[t] > most) fail("a count");
    int64_t reached = 0;
    for (int64_t c = 0; c < C; c++) reached += x[t * C + c] >= threshold;
    if (sampled ? counts[t] < reached : counts[t] != MAX(1, reached)) fail("how many reach the threshold");
    if (!sampled) plain(x + t * C, C, counts[t], ids + t * most, values + t * most);
    for (int64_t i = 0; i < counts[t]; i++)
      if (ids[t * most + i] < 0 || ids[t * most + i] >= C) fail("an id");
  }
  free(x), free(ids), free(values), free(counts);
}

/* As posterior.py calls them: lengths first, then as many entries as they say. */
static void fuzz_posterior(void) {
  int64_t T = take(2) % 300, k = take(1), n = end - at;
  uint8_t *data = malloc(n + 1);
  memcpy(data, at, n);
  uint8_t *exact = malloc(n ? n : 1);
  memcpy(exact, data, n);
  if (k % 2 && n >= 5 * T && T) {
    int64_t *offsets = malloc((T + 1) * 8);
    int64_t used = posterior_offsets(exact, n, T, offsets);
    if (used > n || used < -2) fail("bytes used");
    if (used >= 0) {
      int32_t *ids = malloc(offsets[T] * 4 + 1);
      float *probs = malloc(offsets[T] * 4 + 1);
      if (posterior_entries(exact, T, 0, offsets, ids, probs))
        for (int64_t i = 0; i < offsets[T]; i++)
          if (ids[i] < 0 || ids[i] >= 1 << 23 || !isfinite(probs[i])) fail("an entry");
      free(ids), free(probs);
    }
    free(offsets);
  } else {
    k /= 2;
    int64_t count = n / (5 + 10 * k);
    int32_t *ids = malloc(count * k * 4 + 1);
    float *probs = malloc(count * k * 4 + 1);
    if (posterior_entries(exact, count, k, NULL, ids, probs))
      for (int64_t i = 0; i < count * k; i++)
        if (ids[i] < 0 || ids[i] >= 1 << 23 || !isfinite(probs[i])) fail("an entry");
    free(ids), free(probs);
  }
  free(data), free(exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  at = data, end = data + size;
  switch (take(1) % 4) {
    case 0: fuzz_top_k(); break;
    case 1: fuzz_mixture(); break;
    case 2: fuzz_over_threshold(); break;
    default: fuzz_posterior();
  }
  return 0;
}
