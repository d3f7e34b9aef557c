/* The inner loops of the essence core, for essence_kd/io/kernels.py, which compiles them where there is a C compiler.
   What they compute is defined by NumPy code (distill/essence.py, io/posterior.py) that takes their place where there
   is none.

   Legend: rows of float32, C columns, one after the other; k entries are kept of a row, ordered by falling value, ties
   by rising column. Columns are taken in groups of DEPTH times LANES; the columns of a group with the same remainder by
   LANES are a block, so that the maxima of a group's blocks are what a vector unit makes of it. FAN groups make a large
   group, whose blocks are the union of theirs. The k-th largest of the blocks' maxima, or something a little below, is a
   bound that at least k elements reach: only blocks whose maximum reaches it are looked at again. */
#define _FILE_OFFSET_BITS 64
#define _POSIX_C_SOURCE 200809L
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 16
#define DEPTH 8
#define WIDTH (LANES * DEPTH)
#define AHEAD 8192 /* bytes that are fetched from memory ahead of use */
#define FAN 4
#define RANKED 128 /* as many keys as are sorted by counting */
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float smaller(float a, float b) { return a < b ? a : b; }

/* ------------------------------------------------------------------------------------------------------------ keys */

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

/* The k largest of n different keys, in order, as entries. There is room for RANKED keys; their order is lost. */
static void largest(uint64_t *keys, int64_t n, int64_t k, int32_t *ids, float *values) {
  if (n > RANKED) { /* Hoare's selection: the k largest to the front */
    for (int64_t low = 0, high = n - 1; low < high;) {
      uint64_t pivot = keys[low + (high - low) / 2];
      int64_t i = low, j = high;
      while (i <= j) {
        while (keys[i] > pivot) i++;
        while (keys[j] < pivot) j--;
        if (i <= j) {
          uint64_t swapped = keys[i];
          keys[i++] = keys[j];
          keys[j--] = swapped;
        }
      }
      if (k - 1 <= j) high = j;
      else if (k - 1 >= i) low = i;
      else break;
    }
    n = k;
  }
  if (n > RANKED) {
    qsort(keys, n, sizeof(uint64_t), falling);
    for (int64_t i = 0; i < k; i++) entry_of(keys[i], ids + i, values + i);
    return;
  }
  uint64_t ranks[RANKED] = {0}; /* how many are larger */
  int64_t padded = (n + 7) / 8 * 8;
  for (int64_t i = n; i < padded; i++) keys[i] = 0;
  for (int64_t j = 0; j < n; j++) {
    uint64_t key = keys[j];
#pragma omp simd
    for (int64_t i = 0; i < padded; i++) ranks[i] += key > keys[i];
  }
  for (int64_t i = 0; i < n; i++)
    if (ranks[i] < (uint64_t)k) entry_of(keys[i], ids + ranks[i], values + ranks[i]);
}

/* ----------------------------------------------------------------------------------------------------------- space */

typedef float Element __attribute__((aligned(1))); /* of a row, which begins anywhere in a file */

typedef struct {
  int64_t C, groups, large;  /* columns, groups, large groups */
  float *small, *big;        /* maxima of the blocks of groups, of large groups; -Inf where there are no columns */
  int32_t *blocks, *columns; /* what reaches a bound */
  uint64_t *keys;
} Space;

/* Returns 0 without memory. */
static int make_space(Space *space, int64_t C) {
  int64_t groups = (C + WIDTH - 1) / WIDTH, large = (groups + FAN - 1) / FAN, n = large * LANES, keys = MAX(C, RANKED);
  void *memory;
  if (posix_memalign(&memory, 64, (n + FAN * n) * 4 + (keys + 1) * 8 + (n + FAN * n + C + 2) * 4)) return 0;
  space->C = C, space->groups = groups, space->large = large;
  space->small = memory;
  space->big = space->small + FAN * n;
  space->keys = (uint64_t *)(space->big + n);
  space->blocks = (int32_t *)(space->keys + keys + 1);
  space->columns = space->blocks + n + FAN * n + 1;
  for (int64_t i = 0; i < FAN * n; i++) space->small[i] = -INFINITY;
  return 1;
}

/* ------------------------------------------------------------------------------------------------------------ rows */

/* T rows, in memory or in a file, a window of which is mapped. A file that becomes shorter meanwhile raises SIGBUS:
   the thread then goes on at `shelter`. */
typedef struct {
  Space space;
  const Element *x; /* row `first`; those before `end` follow */
  int64_t T, t, first, end, at; /* t: the row that is looked at; at: where the file has row 0 */
  int fd;
  char *window;
  int64_t size;
  sigjmp_buf shelter;
} Rows;

enum { WINDOW = 1 << 24 }; /* bytes */

static _Thread_local sigjmp_buf *shelter __attribute__((tls_model("initial-exec")));
static struct sigaction before;

static void on_bus_error(int number) {
  if (shelter) siglongjmp(*shelter, 1);
  sigaction(number, &before, NULL); /* none of ours: it comes again, to whom it came before */
}

/* x: the rows, or NULL where they lie at byte `at` of the file fd. Returns NULL without memory. */
static Rows *open_rows(const float *x, int64_t fd, int64_t at, int64_t T, int64_t C) {
  static int installed;
  Rows *rows = calloc(1, sizeof(Rows));
  if (!rows || !make_space(&rows->space, C)) {
    free(rows);
    return NULL;
  }
  rows->x = x, rows->T = T, rows->end = x ? T : 0, rows->at = at, rows->fd = (int)fd;
  if (!x && !__atomic_exchange_n(&installed, 1, __ATOMIC_SEQ_CST)) {
    struct sigaction action = {.sa_handler = on_bus_error, .sa_flags = SA_NODEFER};
    sigaction(SIGBUS, &action, &before);
  }
  return rows;
}

static void close_rows(Rows *rows) {
  shelter = NULL;
  if (rows->window) munmap(rows->window, rows->size);
  free(rows->space.small);
  free(rows);
}

/* The row t; NULL behind the last one, and where the file cannot be mapped. */
static const Element *next_row(Rows *rows) {
  int64_t bytes = rows->space.C * 4, t = rows->t;
  if (t == rows->T) return NULL;
  if (t == rows->end) {
    int64_t count = MIN(rows->T - t, MAX(1, WINDOW / MAX(1, bytes))), at = rows->at + t * bytes;
    int64_t start = at / sysconf(_SC_PAGESIZE) * sysconf(_SC_PAGESIZE);
    if (rows->window) munmap(rows->window, rows->size);
    rows->size = at - start + count * bytes;
    rows->window = mmap(NULL, rows->size, PROT_READ, MAP_SHARED, rows->fd, start);
    if (rows->window == MAP_FAILED) {
      rows->window = NULL;
      return NULL;
    }
    rows->x = (const Element *)(rows->window + (at - start));
    rows->first = t, rows->end = t + count;
    shelter = &rows->shelter;
  }
  return rows->x + (t - rows->first) * rows->space.C;
}

/* ---------------------------------------------------------------------------------------------------------- blocks */

/* The maxima of p - shift by lanes, for a group's n <= WIDTH columns, joined with what is there; so their least, sums. */
static inline void look(const Element *restrict p, int64_t n, float shift, float *restrict best, float *restrict least,
                        float *restrict sums) {
  int64_t full = n / LANES * LANES;
  if (n == WIDTH) { /* two by two, so that an element is loaded once */
#pragma omp simd
    for (int l = 0; l < LANES; l++) {
      float a = p[l] - shift, b = p[LANES + l] - shift;
      float most = larger(a, b), fewest = smaller(a, b), sum = a + b;
      a = p[2 * LANES + l] - shift, b = p[3 * LANES + l] - shift;
      most = larger(larger(a, b), most), fewest = smaller(smaller(a, b), fewest), sum += a + b;
      a = p[4 * LANES + l] - shift, b = p[5 * LANES + l] - shift;
      most = larger(larger(a, b), most), fewest = smaller(smaller(a, b), fewest), sum += a + b;
      a = p[6 * LANES + l] - shift, b = p[7 * LANES + l] - shift;
      most = larger(larger(a, b), most), fewest = smaller(smaller(a, b), fewest), sum += a + b;
      best[l] = larger(most, best[l]);
      least[l] = smaller(fewest, least[l]);
      sums[l] += sum;
    }
    return;
  }
  for (int64_t j = 0; j < full; j += LANES) {
#pragma omp simd
    for (int l = 0; l < LANES; l++) {
      float value = p[j + l] - shift;
      best[l] = larger(value, best[l]);
      least[l] = smaller(value, least[l]);
      sums[l] += value;
    }
  }
  for (int64_t l = 0; l < n - full; l++) {
    float value = p[full + l] - shift;
    best[l] = larger(value, best[l]);
    least[l] = smaller(value, least[l]);
    sums[l] += value;
  }
}

/* The maxima of the large groups' blocks; returns the row's. */
static inline float join(Space *space) {
  float tops[LANES], top = -INFINITY;
  for (int l = 0; l < LANES; l++) tops[l] = -INFINITY;
  for (int64_t g = 0; g < space->large; g++) {
    const float *p = space->small + g * FAN * LANES;
    float *best = space->big + g * LANES;
#pragma omp simd
    for (int l = 0; l < LANES; l++) {
      best[l] = larger(larger(p[l], p[LANES + l]), larger(p[2 * LANES + l], p[3 * LANES + l]));
      tops[l] = larger(best[l], tops[l]);
    }
  }
  for (int l = 0; l < LANES; l++) top = larger(tops[l], top);
  return top;
}

/* Floats as integers in the same order, and back. */
static inline int64_t order_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, 4);
  return bits < 0 ? bits ^ 0x7FFFFFFF : bits;
}

static inline float with_order(int64_t order) {
  int32_t bits = (int32_t)order;
  float value;
  if (bits < 0) bits ^= 0x7FFFFFFF;
  memcpy(&value, &bits, 4);
  return value;
}

/* A bound that from k to about 5 k / 4 of n >= k values reach, of which the largest is `top`; where values tie, the k-th
   largest. */
static float bound_of(const Element *x, int64_t n, int64_t k, float top) {
  /* at least k reach low, fewer reach high; from above in growing steps, then in halves */
  int64_t low = order_of(-INFINITY), high = order_of(top) + 1, most = k + k / 4 + 2;
  for (int64_t step = 1 << 23; high - low > 1; step *= 2) {
    int64_t middle = MAX(high - step, low + (high - low) / 2);
    float bound = with_order(middle);
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = 0; i < n; i++) count += x[i] >= bound;
    if (count < k) {
      high = middle;
    } else {
      low = middle;
      if (count <= most) break;
    }
  }
  return with_order(low);
}

/* As bound_of, of the maxima of as large blocks as there are enough of, or of the row's elements. */
static int too_few_blocks(int64_t C, int64_t k) { return C < 4 * DEPTH * k; }

static float bound_of_row(const Space *space, const Element *row, int64_t k, float top) {
  if (too_few_blocks(space->C, k)) return bound_of(row, space->C, k, top);
  if (too_few_blocks(space->C, FAN * k)) return bound_of(space->small, space->groups * LANES, k, top);
  return bound_of(space->big, space->large * LANES, k, top);
}

/* The blocks of groups that reach a bound: how many; they are in `blocks`. */
static int64_t blocks_reaching(Space *space, float bound) {
  int64_t n = 0, m = 0, large = space->large * LANES;
  int32_t *big = space->blocks + FAN * large, *small = space->blocks;
  for (int64_t b = 0; b < large; b++) {
    big[n] = (int32_t)b;
    n += space->big[b] >= bound;
  }
  for (int64_t i = 0; i < n; i++) {
    int32_t b = big[i] / LANES * (FAN * LANES) + big[i] % LANES;
    for (int f = 0; f < FAN; f++, b += LANES) {
      small[m] = b;
      m += space->small[b] >= bound;
    }
  }
  return m;
}

/* The columns of a row that reach a bound: how many; they are in `columns`. */
static int64_t columns_reaching(Space *space, const Element *row, float bound) {
  int64_t n = blocks_reaching(space, bound), kept = 0;
  int32_t *columns = space->columns;
  for (int64_t i = 0; i < n; i++) {
    int64_t c = space->blocks[i] / LANES * WIDTH + space->blocks[i] % LANES, end = MIN(space->C, c + WIDTH);
    for (; c < end; c += LANES) {
      columns[kept] = (int32_t)c;
      kept += row[c] >= bound;
    }
  }
  return kept;
}

/* Looks at a row, and finds its largest: 1 when its elements lie in [low, high] and, with tolerance > 0, its sum is 1
   within it. */
static int look_at(Space *space, const Element *row, float low, float high, float tolerance, float *top) {
  float least[LANES], sums[LANES] = {0}, total = 0, bottom = INFINITY;
  for (int l = 0; l < LANES; l++) least[l] = INFINITY;
  for (int64_t g = 0; g < space->groups; g++) {
    float *best = space->small + g * LANES;
    for (int l = 0; l < LANES; l++) best[l] = -INFINITY;
    for (int i = 0; i < WIDTH * 4; i += 64) __builtin_prefetch((const char *)(row + g * WIDTH) + AHEAD + i);
    look(row + g * WIDTH, MIN(WIDTH, space->C - g * WIDTH), 0, best, least, sums);
  }
  *top = join(space);
  for (int l = 0; l < LANES; l++) total += sums[l], bottom = smaller(least[l], bottom);
  if (tolerance > 0 && !(fabsf(total - 1) <= tolerance)) return 0;
  return !isnan(total) && bottom >= low && *top <= high; /* a NaN shows in the sum alone */
}

static void top_k_of_rows(Rows *rows, int64_t k, float low, float high, float tolerance, int32_t *ids, float *values) {
  Space *space = &rows->space;
  for (const Element *row; (row = next_row(rows)); rows->t++) {
    float top;
    if (!look_at(space, row, low, high, tolerance, &top)) return;
    int64_t n = columns_reaching(space, row, bound_of_row(space, row, k, top));
    for (int64_t i = 0; i < n; i++) space->keys[i] = key_of(row[space->columns[i]], space->columns[i]);
    largest(space->keys, n, k, ids + rows->t * k, values + rows->t * k);
  }
}

/* The k largest of each of T rows, which are in memory or (x NULL) at byte `at` of the file fd. Elements must lie in
   [low, high]; with tolerance > 0 a row's sum must be 1 within it. Returns the first row that breaks this, or seems to,
   or cannot be read; T when all are good; -1 without memory. */
int64_t top_k(const float *x, int64_t fd, int64_t at, int64_t T, int64_t C, int64_t k, float low, float high,
              float tolerance, int32_t *ids, float *values) {
  Rows *rows = open_rows(x, fd, at, T, C);
  if (!rows) return -1;
  if (!sigsetjmp(rows->shelter, 0)) top_k_of_rows(rows, k, low, high, tolerance, ids, values);
  int64_t done = rows->t;
  close_rows(rows);
  return done;
}

/* The k largest of p(c) = sum_m exp(z_m(c) - norm_m(t)) weight_m over M matrices z_m, as distill/essence.py derives it.
   norms: M times T doubles. Values are p rounded to float32. Returns the first row with a NaN or +Inf, or with a p
   above high; T when all are good; -1 without memory. */
int64_t top_k_of_mixture(const float *const *z, const double *norms, const double *weights, int64_t M, int64_t T,
                         int64_t C, int64_t k, float high, int32_t *ids, float *values) {
  int64_t t;
  Space space;
  float *shifts = malloc(M * sizeof(float));
  if (!shifts || !make_space(&space, C)) {
    free(shifts);
    return -1;
  }
  for (t = 0; t < T; t++) {
    float least[LANES] = {0}, sums[LANES] = {0}, total = 0;
    float slack = 1e-4f; /* what the rounding of z - shift may hide */
    for (int64_t m = 0; m < M; m++) {
      shifts[m] = (float)(norms[m * T + t] - log(weights[m]));
      slack = MAX(slack, 4e-7f * fabsf(shifts[m]));
    }
    for (int64_t g = 0; g < space.groups; g++) {
      float *best = space.small + g * LANES;
      for (int l = 0; l < LANES; l++) best[l] = -INFINITY;
      for (int64_t m = 0; m < M; m++)
        look(z[m] + t * C + g * WIDTH, MIN(WIDTH, C - g * WIDTH), shifts[m], best, least, sums);
    }
    float top = join(&space);
    for (int l = 0; l < LANES; l++) total += sums[l];
    if (isnan(total) || top > FLT_MAX) break;
    /* exp(best) <= p <= M exp(best). Near float32's smallest numbers probabilities tie over a wide range of logs:
       there every class counts. */
    float *elements = (float *)space.keys; /* of the row of maxima over m */
    for (int64_t m = 0; m < M && too_few_blocks(C, k); m++)
      for (int64_t c = 0; c < C; c++) {
        float value = z[m][t * C + c] - shifts[m];
        elements[c] = m ? larger(value, elements[c]) : value;
      }
    float bound = bound_of_row(&space, elements, k, top);
    bound = bound < -85 ? -INFINITY : bound - (float)log((double)M) - slack;
    int64_t n = blocks_reaching(&space, bound), kept = 0;
    for (int64_t i = 0; i < n; i++) {
      int64_t c = space.blocks[i] / LANES * WIDTH + space.blocks[i] % LANES, end = MIN(C, c + WIDTH);
      for (; c < end; c += LANES) {
        int near = 0;
        for (int64_t m = 0; m < M; m++) near |= z[m][t * C + c] - shifts[m] >= bound;
        if (!near) continue;
        double p = 0;
        for (int64_t m = 0; m < M; m++) p += weights[m] * exp((double)z[m][t * C + c] - norms[m * T + t]);
        space.keys[kept++] = key_of((float)p, c);
      }
    }
    largest(space.keys, kept, k, ids + t * k, values + t * k);
    if (!(values[t * k] <= high)) break;
  }
  free(shifts);
  free(space.small);
  return t;
}

/* The value where it is below the threshold, else 0; without a branch. */
static inline float below(float value, float threshold) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits &= -(uint32_t)(value < threshold);
  memcpy(&value, &bits, 4);
  return value;
}

/* Systematic samples of the elements below the threshold: a mark every `threshold` along their running sum, the first
   at `position` times threshold before it; an element on which a mark falls is kept at the threshold. Adds keys up to
   capacity to the n there are; returns how many there are then, -1 for more than capacity. */
static int64_t marked(const Element *row, int64_t C, float threshold, double position, uint64_t *keys, int64_t n,
                      int64_t capacity) {
  enum { BLOCK = 64, HALF = LANES / 2 };
  double next = floor(position) + 1;
  for (int64_t b = 0; b < C; b += BLOCK) {
    const Element *p = row + b;
    int size = (int)MIN(BLOCK, C - b), full = size / LANES * LANES;
    double sums[LANES] = {0}, small = 0, steps[BLOCK];
    for (int j = 0; j < full; j += LANES) {
#pragma omp simd
      for (int l = 0; l < LANES; l++) sums[l] += below(p[j + l], threshold);
    }
    for (int j = full; j < size; j++) small += below(p[j], threshold);
    for (int l = 0; l < HALF; l++) sums[l] += sums[HALF + l];
    small += ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    double end = position + small / (double)threshold;
    if (end >= next) {
      for (int j = 0; j < size; j++) steps[j] = (double)below(p[j], threshold) / (double)threshold;
      for (int j = 0; j < size; j++) {
        position += steps[j];
        if (position < next) continue;
        next = floor(position) + 1;
        if (n == capacity) return -1;
        keys[n++] = key_of(threshold, b + j);
      }
      next = floor(end) + 1;
    }
    position = end;
  }
  return n;
}

static void over_threshold_of_rows(Rows *rows, float threshold, const double *starts, float high, float tolerance,
                                   int64_t capacity, uint64_t *keys, int64_t *counts, int32_t *ids, float *values) {
  Space *space = &rows->space;
  for (const Element *row; (row = next_row(rows)); rows->t++) {
    float top;
    if (!look_at(space, row, 0, high, tolerance, &top)) return;
    int64_t n = columns_reaching(space, row, threshold), t = rows->t;
    if (n > capacity) return;
    for (int64_t i = 0; i < n; i++) keys[i] = key_of(row[space->columns[i]], space->columns[i]);
    if (starts && (n = marked(row, space->C, threshold, starts[t], keys, n, capacity)) < 0) return;
    if (n == 0) {
      int64_t c = 0;
      while (row[c] != top) c++;
      keys[n++] = key_of(top, c);
    }
    largest(keys, n, n, ids + t * capacity, values + t * capacity);
    counts[t] = n;
  }
}

/* Probabilities of T rows (as in top_k) that reach the threshold, and where starts is given, systematic samples of the
   others (`marked`), of row t from position starts[t] on. A row that would be empty keeps its largest. Entries are
   ordered; row t has counts[t] <= capacity of them. Returns as top_k does; a row with more entries than capacity breaks
   it, too. */
int64_t over_threshold(const float *x, int64_t fd, int64_t at, int64_t T, int64_t C, float threshold,
                       const double *starts, float high, float tolerance, int64_t capacity, int64_t *counts,
                       int32_t *ids, float *values) {
  Rows *rows = open_rows(x, fd, at, T, C);
  uint64_t *keys = malloc((MAX(capacity, RANKED) + 1) * sizeof(uint64_t));
  int64_t done = -1;
  if (rows && keys) {
    if (!sigsetjmp(rows->shelter, 0))
      over_threshold_of_rows(rows, threshold, starts, high, tolerance, capacity, keys, counts, ids, values);
    done = rows->t;
  }
  if (rows) close_rows(rows);
  free(keys);
  return done;
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

#ifdef __AVX2__
static inline __m256i two_loads(const uint8_t *low, const uint8_t *high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)low)),
                                 _mm_loadu_si128((const __m128i *)high), 1);
}
#endif

#define ALL_ONES(bits) (((bits) & 0x7F800000u) + 0x00800000u) /* an exponent of ones overflows into the sign */

/* The entries of T frames whose offsets are known (NULL: k per frame). Returns 1, or 0 when a cell is not marked as 32
   bits wide, a pdf-id is not below the smallest normal float, or a weight is not finite. */
int64_t posterior_entries(const uint8_t *restrict data, int64_t T, int64_t k, const int64_t *offsets,
                          int32_t *restrict ids, float *restrict probs) {
  const uint64_t good = 0x0000040000000004u; /* the byte 4, the pdf-id, the byte 4, and two bytes of the weight */
  int64_t n = 0;
  uint64_t odd = 0;
  uint32_t endless = 0;
#ifdef __AVX2__
  /* Of two entries, sixteen bytes from the first on hold all but their weights, which lie in the sixteen from byte 4 on. */
  const __m256i ones = _mm256_set1_epi32(0x7F800000), step = _mm256_set1_epi32(0x00800000);
  const __m256i fixed = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(-1, 0, 0, -128, -1, -1, 0, 0, 0, 0, -1, 0, 0, -128, -1, -1));
  const __m256i tags = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(4, 0, 0, 0, 0, 4, 0, 0, 0, 0, 4, 0, 0, 0, 0, 4));
  const __m256i ids_at = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(1, 2, 3, 4, 11, 12, 13, 14, -1, -1, -1, -1, -1, -1, -1, -1));
  const __m256i probs_at = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 2, 3, 4, 5, 12, 13, 14, 15));
  __m256i wrong = _mm256_setzero_si256(), high = _mm256_setzero_si256();
#endif
  for (int64_t t = 0; t < T; t++) {
    int64_t count = offsets ? offsets[t + 1] - offsets[t] : k;
    if (data[0] != 4 || cell(data) != count) return 0;
    data += 5;
    int64_t end = n + count;
#ifdef __AVX2__
    for (; n + 4 <= end; n += 4, data += 40) {
      __m256i heads = two_loads(data, data + 20), tails = two_loads(data + 4, data + 24);
      __m256i both = _mm256_or_si256(_mm256_shuffle_epi8(heads, ids_at), _mm256_shuffle_epi8(tails, probs_at));
      both = _mm256_permute4x64_epi64(both, 0xD8); /* four pdf-ids, four weights */
      _mm_storeu_si128((__m128i *)(ids + n), _mm256_castsi256_si128(both));
      _mm_storeu_si128((__m128i *)(probs + n), _mm256_extracti128_si256(both, 1));
      wrong = _mm256_or_si256(wrong, _mm256_and_si256(_mm256_xor_si256(heads, tags), fixed));
      high = _mm256_or_si256(high, _mm256_add_epi32(_mm256_and_si256(both, ones), step));
    }
#endif
    for (; n < end; n++, data += 10) {
      uint64_t head;
      uint32_t bits;
      memcpy(&head, data, 8);
      memcpy(&bits, data + 6, 4);
      memcpy(probs + n, &bits, 4);
      ids[n] = (int32_t)(head >> 8);
      odd |= head ^ good;
      endless |= ALL_ONES(bits);
    }
  }
#ifdef __AVX2__
  /* A pdf-id's exponent is not of ones, or `wrong` would tell. */
  if (!_mm256_testz_si256(wrong, wrong) || _mm256_movemask_ps(_mm256_castsi256_ps(high))) return 0;
#endif
  return !(odd & 0x0000FFFF800000FFu) && !(endless & 0x80000000u);
}

/* Whether one of T frames names a pdf-id (>= 0) twice: 1 or 0; -1 without memory, or with a frame of more than 65,536
   ids. The frames' offsets, or NULL: k ids per frame. An id's place in its frame is noted under the id, where a later
   place of the same id takes its stead. */
int64_t repeated_entries(const int32_t *ids, int64_t T, int64_t k, const int64_t *offsets) {
  int64_t n = offsets ? offsets[T] : T * k, most = offsets ? 0 : k;
  int32_t top = 0;
  for (int64_t i = 0; i < n; i++) top = MAX(top, ids[i]);
  for (int64_t t = 0; offsets && t < T; t++) most = MAX(most, offsets[t + 1] - offsets[t]);
  if (most < 2) return 0;
  uint16_t *place = most > 65536 ? NULL : malloc(((size_t)top + 1) * sizeof(uint16_t));
  if (!place) return -1;
  unsigned odd = 0;
  for (int64_t t = 0; t < T && !odd; t++) {
    int count = (int)(offsets ? offsets[t + 1] - offsets[t] : k);
    for (int i = 0; i < count; i++) place[ids[i]] = (uint16_t)i;
    for (int i = 0; i < count; i++) odd |= place[ids[i]] ^ (uint16_t)i;
    ids += count;
  }
  free(place);
  return odd != 0;
}

/* --------------------------------------------------------------------------------------------------------- alignment */

/* The cheapest path of T frames through S states (hmm/viterbi.py tells the arguments). Returns 1, or 0 where there is
   none, or -1 where memory is lacking. */
int64_t viterbi(const float *scores, int64_t T, int64_t C, int64_t S, const int32_t *pdf, const float *loop,
                const int64_t *first_arc, const int32_t *src, const float *cost, const float *enter, const float *leave,
                int32_t *path, double *total) {
  double *now = malloc((size_t)S * sizeof *now), *earlier = malloc((size_t)S * sizeof *earlier);
  uint16_t *back = malloc((size_t)T * (size_t)S * sizeof *back); /* 0: the self-loop, n: the n-th arc that enters */
  int64_t result = -1;
  if (now && earlier && back) {
    for (int64_t s = 0; s < S; s++)
      now[s] = (double)enter[s] - scores[pdf[s]];
    for (int64_t t = 1; t < T; t++) {
      const float *row = scores + t * C;
      uint16_t *from = back + t * S;
      double *swap = earlier;
      earlier = now;
      now = swap;
      for (int64_t s = 0; s < S; s++) {
        double best = earlier[s] + loop[s];
        uint16_t which = 0;
        for (int64_t a = first_arc[s]; a < first_arc[s + 1]; a++) {
          double come = earlier[src[a]] + cost[a];
          if (come < best) {
            best = come;
            which = (uint16_t)(a - first_arc[s] + 1);
          }
        }
        now[s] = best - row[pdf[s]];
        from[s] = which;
      }
    }
    int64_t state = 0;
    for (int64_t s = 1; s < S; s++)
      if (now[s] + leave[s] < now[state] + leave[state])
        state = s;
    *total = now[state] + leave[state];
    result = isfinite(*total) ? 1 : 0;
    for (int64_t t = T; result && t-- > 0;) {
      path[t] = (int32_t)state;
      if (t && back[t * S + state])
        state = src[first_arc[state] + back[t * S + state] - 1];
    }
  }
  free(now);
  free(earlier);
  free(back);
  return result;
}
