/* A Triton backend around onnxruntime, in one file: Triton's own comes in container images only.
 *
 * One input "x" and one output "y" of FP32, rows in the first dimension. Requests that come together share a
 * run; a request that comes alone is run where its octets lie, into where its answer is to lie. Both
 * interfaces are plain C whose order never changes, so the few functions that are used are declared here.
 *
 *     cc -O2 -shared -fPIC triton_onnx.c -o libtriton_onnx.so -ldl
 *
 * $EDGEKIT_ONNXRUNTIME: path of libonnxruntime.so.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void Error, Model, Instance, Request, Input, Response, Output;
enum { INTERNAL = 1, FP32 = 11, CPU = 0, FINAL = 1, ALL = 1, MOST_DIMENSIONS = 8 };

Error *TRITONSERVER_ErrorNew(int code, const char *text);
Error *TRITONBACKEND_ModelRepository(Model *, int *kind, const char **location);
Error *TRITONBACKEND_ModelVersion(Model *, uint64_t *);
Error *TRITONBACKEND_ModelInstanceModel(Instance *, Model **);
Error *TRITONBACKEND_ModelInstanceState(Instance *, void **);
Error *TRITONBACKEND_ModelInstanceSetState(Instance *, void *);
Error *TRITONBACKEND_RequestInputByIndex(Request *, uint32_t, Input **);
Error *TRITONBACKEND_RequestRelease(Request *, uint32_t);
Error *TRITONBACKEND_InputProperties(Input *, const char **, int *, const int64_t **, uint32_t *, uint64_t *, uint32_t *);
Error *TRITONBACKEND_InputBuffer(Input *, uint32_t, const void **, uint64_t *, int *, int64_t *);
Error *TRITONBACKEND_ResponseNew(Response **, Request *);
Error *TRITONBACKEND_ResponseOutput(Response *, Output **, const char *, int, const int64_t *, uint32_t);
Error *TRITONBACKEND_ResponseSend(Response *, uint32_t, Error *);
Error *TRITONBACKEND_OutputBuffer(Output *, void **, uint64_t, int *, int64_t *);
Error *TRITONBACKEND_ModelInstanceReportStatistics(Instance *, Request *, bool, uint64_t, uint64_t, uint64_t, uint64_t);
Error *TRITONBACKEND_ModelInstanceReportBatchStatistics(Instance *, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

/* onnxruntime: a table of functions; a status that is not null is an error. */
typedef void Status;
enum {
  GET_ERROR_MESSAGE = 2, CREATE_ENV = 3, CREATE_SESSION = 7, RUN = 9, CREATE_SESSION_OPTIONS = 10,
  SET_INTRA_OP_NUM_THREADS = 24, CREATE_TENSOR_WITH_DATA = 49, GET_TENSOR_MUTABLE_DATA = 51,
  GET_DIMENSIONS_COUNT = 61, GET_DIMENSIONS = 62, GET_TENSOR_TYPE_AND_SHAPE = 65, CREATE_CPU_MEMORY_INFO = 69,
  RELEASE_SESSION = 95, RELEASE_VALUE = 96, RELEASE_TYPE_AND_SHAPE = 99, API_VERSION = 16
};
typedef void *const *Api;
#define CALL(index, types) ((Status * (*) types) ort[index])

static Api ort;
static void *environment, *memory;

typedef struct {
  void *session;
  float *joined;
  size_t room;
} State;

static Error *failed(const char *where, Status *status) {
  char text[300];
  const char *why = ort ? ((const char *(*)(Status *))ort[GET_ERROR_MESSAGE])(status) : "";
  snprintf(text, sizeof text, "%s: %s", where, why);
  return TRITONSERVER_ErrorNew(INTERNAL, text);
}

static uint64_t now(void) {
  struct timespec found;
  clock_gettime(CLOCK_MONOTONIC, &found);
  return (uint64_t)found.tv_sec * 1000000000u + (uint64_t)found.tv_nsec;
}

Error *TRITONBACKEND_Initialize(void *backend) {
  (void)backend;
  const char *path = getenv("EDGEKIT_ONNXRUNTIME");
  void *library = dlopen(path ? path : "libonnxruntime.so", RTLD_NOW | RTLD_LOCAL);
  if (!library) return TRITONSERVER_ErrorNew(INTERNAL, dlerror());
  struct { Api (*get)(uint32_t); } *base = ((void *(*)(void))dlsym(library, "OrtGetApiBase"))();
  ort = base->get(API_VERSION);
  Status *status = CALL(CREATE_ENV, (int, const char *, void **))(3, "triton", &environment);
  if (!status) status = CALL(CREATE_CPU_MEMORY_INFO, (int, int, void **))(1, 0, &memory);
  return status ? failed("onnxruntime", status) : NULL;
}

Error *TRITONBACKEND_ModelInstanceInitialize(Instance *instance) {
  Model *model;
  const char *folder;
  char path[4096];
  int kind;
  uint64_t version;
  void *options;
  TRITONBACKEND_ModelInstanceModel(instance, &model);
  TRITONBACKEND_ModelRepository(model, &kind, &folder);
  TRITONBACKEND_ModelVersion(model, &version);
  snprintf(path, sizeof path, "%s/%llu/model.onnx", folder, (unsigned long long)version);
  State *state = calloc(1, sizeof *state);
  Status *status = CALL(CREATE_SESSION_OPTIONS, (void **))(&options);
  if (!status) status = CALL(SET_INTRA_OP_NUM_THREADS, (void *, int))(options, 1);
  if (!status)
    status = CALL(CREATE_SESSION, (void *, const char *, void *, void **))(environment, path, options, &state->session);
  if (status) return failed(path, status);
  return TRITONBACKEND_ModelInstanceSetState(instance, state);
}

Error *TRITONBACKEND_ModelInstanceFinalize(Instance *instance) {
  State *state;
  TRITONBACKEND_ModelInstanceState(instance, (void **)&state);
  if (state->session) ((void (*)(void *))ort[RELEASE_SESSION])(state->session);
  free(state->joined);
  free(state);
  return NULL;
}

/* The rows of all requests one after the other; of a single one where they lie. */
static const float *gather(State *state, Request **requests, uint32_t count, int64_t *shape, uint32_t *dimensions, int64_t *rows) {
  size_t total = 0, at = 0;
  shape[0] = 0;
  for (uint32_t i = 0; i < count; i++) {
    Input *input;
    const int64_t *own;
    uint64_t size;
    uint32_t buffers;
    TRITONBACKEND_RequestInputByIndex(requests[i], 0, &input);
    TRITONBACKEND_InputProperties(input, NULL, NULL, &own, dimensions, &size, &buffers);
    rows[i] = own[0];
    shape[0] += own[0];
    memcpy(shape + 1, own + 1, (*dimensions - 1) * sizeof *own);
    total += size;
    if (count == 1 && buffers == 1) {
      const void *data;
      int kind = CPU;
      int64_t id = 0;
      TRITONBACKEND_InputBuffer(input, 0, &data, &size, &kind, &id);
      return data;
    }
  }
  if (total > state->room) state->joined = realloc(state->joined, state->room = total);
  for (uint32_t i = 0; i < count; i++) {
    Input *input;
    uint32_t buffers;
    TRITONBACKEND_RequestInputByIndex(requests[i], 0, &input);
    TRITONBACKEND_InputProperties(input, NULL, NULL, NULL, NULL, NULL, &buffers);
    for (uint32_t b = 0; b < buffers; b++) {
      const void *data;
      uint64_t size;
      int kind = CPU;
      int64_t id = 0;
      TRITONBACKEND_InputBuffer(input, b, &data, &size, &kind, &id);
      memcpy((char *)state->joined + at, data, size);
      at += size;
    }
  }
  return state->joined;
}

static size_t product(const int64_t *shape, uint32_t dimensions) {
  size_t found = 1;
  for (uint32_t i = 0; i < dimensions; i++) found *= (size_t)shape[i];
  return found;
}

Error *TRITONBACKEND_ModelInstanceExecute(Instance *instance, Request **requests, uint32_t count) {
  static const char *const in[] = {"x"}, *const out[] = {"y"};
  uint64_t begin = now();
  State *state;
  int64_t shape[MOST_DIMENSIONS], rows[count];
  uint32_t dimensions;
  size_t out_dimensions = 0;
  void *x = NULL, *y = NULL, *information = NULL;
  float *values = NULL;
  TRITONBACKEND_ModelInstanceState(instance, (void **)&state);
  const float *data = gather(state, requests, count, shape, &dimensions, rows);
  size_t octets = product(shape, dimensions) * sizeof(float);
  uint64_t started = now();
  Status *status = CALL(CREATE_TENSOR_WITH_DATA, (void *, const void *, size_t, const int64_t *, size_t, int, void **))(
      memory, data, octets, shape, dimensions, 1, &x);
  if (!status)
    status = CALL(RUN, (void *, void *, const char *const *, void *const *, size_t, const char *const *, size_t, void **))(
        state->session, NULL, in, &x, 1, out, 1, &y);
  uint64_t ended = now();
  if (!status) status = CALL(GET_TENSOR_MUTABLE_DATA, (void *, void **))(y, (void **)&values);
  if (!status) status = CALL(GET_TENSOR_TYPE_AND_SHAPE, (void *, void **))(y, &information);
  if (!status) status = CALL(GET_DIMENSIONS_COUNT, (void *, size_t *))(information, &out_dimensions);
  if (!status) status = CALL(GET_DIMENSIONS, (void *, int64_t *, size_t))(information, shape, out_dimensions);
  size_t width = status ? 0 : product(shape + 1, (uint32_t)out_dimensions - 1);
  uint64_t batch = 0;
  for (uint32_t i = 0; i < count; i++) {
    Response *response;
    Output *output;
    void *place;
    int kind = CPU;
    int64_t id = 0;
    TRITONBACKEND_ResponseNew(&response, requests[i]);
    if (status) {
      TRITONBACKEND_ResponseSend(response, FINAL, failed("run", status));
    } else {
      size_t own = (size_t)rows[i] * width;
      shape[0] = rows[i];
      TRITONBACKEND_ResponseOutput(response, &output, "y", FP32, shape, (uint32_t)out_dimensions);
      TRITONBACKEND_OutputBuffer(output, &place, own * sizeof(float), &kind, &id);
      memcpy(place, values, own * sizeof(float));
      values += own;
      TRITONBACKEND_ResponseSend(response, FINAL, NULL);
    }
    batch += (uint64_t)rows[i];
  }
  if (information) ((void (*)(void *))ort[RELEASE_TYPE_AND_SHAPE])(information);
  if (x) ((void (*)(void *))ort[RELEASE_VALUE])(x);
  if (y) ((void (*)(void *))ort[RELEASE_VALUE])(y);
  uint64_t end = now();
  for (uint32_t i = 0; i < count; i++) {
    TRITONBACKEND_ModelInstanceReportStatistics(instance, requests[i], !status, begin, started, ended, end);
    TRITONBACKEND_RequestRelease(requests[i], ALL);
  }
  TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, batch, begin, started, ended, end);
  return NULL;
}
