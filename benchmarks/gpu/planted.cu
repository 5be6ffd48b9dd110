// Two faults, each of which one tool of compute-sanitizer has to find before its silence about the kernels means
// anything: `planted write` writes out of bounds, `planted race` lacks a barrier.
#include <cstdio>
#include <cstring>

__global__ void out_of_bounds(int *data) { data[threadIdx.x + 1024] = 1; }

__global__ void race(int *data) {
  __shared__ int values[64];
  values[threadIdx.x] = threadIdx.x;
  data[threadIdx.x] = values[63 - threadIdx.x];
}

int main(int count, char **words) {
  int *data = nullptr;
  if (cudaMalloc(&data, 256) != cudaSuccess) return 2;
  if (count > 1 && strcmp(words[1], "write") == 0)
    out_of_bounds<<<1, 32>>>(data);
  else
    race<<<1, 64>>>(data);
  const cudaError_t error = cudaDeviceSynchronize();
  printf("%s\n", cudaGetErrorString(error));
  return 0;
}
