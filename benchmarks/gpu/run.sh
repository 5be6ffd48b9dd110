#!/usr/bin/env bash
# Builds, checks and times the attention kernels on this machine's GPU, then every bundle's engines by ONNX Runtime;
# state, logs and the report are in build/gpu.
#   run.sh                  every part, then the report; parts that are done are skipped unless what they read changed
#   run.sh build|check|ceilings|time|bundles|engines|report
# Nothing is downloaded. PYTHON: the interpreter (python3), of an environment with onnxruntime-gpu for the engines;
# FACESDK_CUDA_ARCH: 90, say, where no GPU tells; FACESDK_BUNDLES: a folder of bundles that are measured beside those of
# random weights that the installed packages can make.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."

python=${PYTHON:-python3}
state=build/gpu
library=$state/libfacesdk_kernels.so
bundles=$state/bundles
makers=(engines export benchmarks/{generate,swap,synthesize,tensorrt_build}.py benchmarks/gpu/{bundles,cases,running}.py)
# a folder of bundles, or one itself
brought=()
for found in ${FACESDK_BUNDLES:+"$FACESDK_BUNDLES"/bundle.toml "$FACESDK_BUNDLES"/*/bundle.toml}; do
  [[ ! -f $found ]] || brought+=("${found%/bundle.toml}")
done
rooms=$PWD/sdk:$PWD/engines:$PWD/export:$PWD/benchmarks
export PYTHONPATH="$rooms${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 FACESDK_KERNELS="$PWD/$library"
# the references are many small products: threads would wait for one another longer than they compute
export OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_NUM_THREADS=1
mkdir -p "$state"

# -- the parts ------------------------------------------------------------------------------------------------------

architecture() {
  if [[ -n ${FACESDK_CUDA_ARCH:-} ]]; then echo "$FACESDK_CUDA_ARCH"; return; fi
  local told
  told=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d '. ') || true
  [[ $told =~ ^[0-9]+$ ]] || told=$("$python" -c 'from benchmarks.gpu.device import open_device; print("%d%d" % open_device().capability)')
  echo "$told"
}

build_with_cmake() {
  [[ -f kernels/CMakeLists.txt ]] && command -v cmake >/dev/null &&
    cmake -S kernels -B "$state/cmake" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES="$1-real" &&
    cmake --build "$state/cmake" --parallel &&
    cp "$state/cmake/${library##*/}" "$library"
}

build_with_nvcc() {
  nvcc -std=c++17 -O3 -gencode="arch=compute_$1,code=sm_$1" -shared -cudart static --threads 0 \
    -Xcompiler -fPIC,-fvisibility=hidden -o "$library" kernels/src/*.cu
}

run_build() {
  local arch
  arch=$(architecture)
  rm -rf "$state/cmake" "$library"
  build_with_cmake "$arch" || { echo "no build by cmake; one nvcc command instead"; build_with_nvcc "$arch"; }
  echo "built $library for sm_$arch"
}

run_check() {
  timeout 200 "$python" -m benchmarks.gpu.check -o "$state/check.csv"
  timeout 60 "$python" -m benchmarks.gpu.check_face
  sanitize memcheck write
  sanitize racecheck race
}

# A tool's silence counts only where it finds a fault that was planted for it.
sanitize() {
  local tool=$1 log="$state/$1.log"
  if ! command -v compute-sanitizer >/dev/null; then
    echo "$tool: compute-sanitizer is not here, nothing was checked by it"
    return
  fi
  local run=(timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 9)
  nvcc -arch="sm_$(architecture)" -o "$state/planted" "$here/planted.cu"
  "${run[@]}" "$state/planted" "$2" >"$log" 2>&1 || true
  if ! grep -q -e 'Invalid __global__ write' -e 'Race reported' -e 'hazard' "$log"; then
    echo "$tool: does not work here, it missed a planted fault: $(tail -1 "$log")"
    return
  fi
  local code=0
  "${run[@]}" "$python" -m benchmarks.gpu.check --few --device bindings,cudart >"$log" 2>&1 || code=$?
  if ((code == 124)); then
    echo "$tool: stopped after 90 s, without a result"
  elif ((code)); then
    tail -30 "$log"
    echo "$tool: WRONG, see $log"
    return 1
  else
    echo "$tool: finds the planted fault, and nothing in the kernels ($(tail -2 "$log" | head -1))"
  fi
}

run_ceilings() { timeout 90 "$python" -m benchmarks.gpu.ceilings "$state/ceilings.json"; }

run_time() {
  timeout 200 "$python" -m benchmarks.gpu.time_attention --seconds 150 \
    --ceilings "$state/ceilings.json" -o "$state/attention.md"
}

# Every system in a process of its own, all at once, with threads: other parts' limit would make them slow.
run_bundles() {
  local system pid made_by status=0 pids=()
  made_by=$(fingerprint "${makers[@]}")
  [[ -f $bundles/of && $(<"$bundles/of") == "$made_by" ]] || rm -rf "$bundles"
  mkdir -p "$bundles"
  echo "$made_by" >"$bundles/of"
  for system in annotation hififace vec2face face2diffusion "${brought[@]}"; do
    env -u OPENBLAS_NUM_THREADS -u MKL_NUM_THREADS -u OMP_NUM_THREADS \
      timeout 500 "$python" -m benchmarks.gpu.bundles "$bundles" "$system" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || excused $? || status=1; done
  return "$status"
}

run_engines() {
  timeout 240 "$python" -m benchmarks.gpu.engines "$bundles" -o "$state/engines.md" || excused $?
}

# Status 3: something cannot be done here, and the reason was told; it is no failure, and tried again the next time.
excused() {
  (($1 == 3)) || return "$1"
  touch "$state/$name.undone"
}

packages() {
  echo "$python"
  "$python" -c 'import importlib.metadata as m; print(*sorted(f"{d.name} {d.version}" for d in m.distributions()))'
}

report() {
  {
    echo "# GPU report"
    nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>/dev/null || true
    for part in build check ceilings bundles; do
      printf '\n## %s\n\n```text\n' "$part"
      if [[ -f $state/$part.done || -f $state/$part.undone ]]; then tail -40 "$state/$part.txt"; else echo "not done, or failed"; fi
      printf '```\n'
    done
    echo
    if [[ -f $state/time.done ]]; then cat "$state/attention.md"; else echo "Times: not taken, or failed"; fi
    echo
    if [[ -f $state/engines.md ]]; then cat "$state/engines.md"; else echo "Engines: not measured, or failed"; fi
  } >"$state/report.md"
  cat "$state/report.md"
}

# -- resuming -------------------------------------------------------------------------------------------------------

# What a part reads, as one number; the first line names the machine's GPU and compiler.
fingerprint() {
  {
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || true
    nvcc --version 2>/dev/null || true
    { find "$@" -type f -not -name '*.pyc' -print0 2>/dev/null || true; } | sort -z | xargs -0 -r sha256sum
  } | sha256sum
}

reads() {
  case $1 in
    build) echo kernels ;;
    check) echo "$library benchmarks/gpu sdk/facesdk/kernels" ;;
    ceilings) echo "benchmarks/gpu/ceilings.py benchmarks/gpu/device.py" ;;
    time) echo "$library benchmarks/gpu sdk/facesdk/kernels $state/ceilings.json" ;;
    bundles) echo "${makers[*]} ${brought[*]/%//bundle.toml}" ;;
    engines) echo "$bundles/of $bundles/*/place.json benchmarks/gpu sdk/facesdk $state/packages.txt" ;;
  esac
}

part() {
  local name=$1 now
  [[ $name != engines ]] || packages >"$state/packages.txt"
  # shellcheck disable=SC2046  # several paths and patterns, none with spaces
  now=$(fingerprint $(reads "$name"))
  if [[ -f $state/$name.done && $(<"$state/$name.done") == "$now" ]]; then
    echo "== $name: done already"
    return
  fi
  echo "== $name"
  rm -f "$state/$name.done" "$state/$name.undone"
  "run_$name" 2>&1 | tee "$state/$name.txt"
  [[ -f $state/$name.undone ]] || echo "$now" >"$state/$name.done"
  echo "== $name: $SECONDS s"
}

case ${1:-all} in
  build | check | ceilings | time | bundles | engines) part "$1" ;;
  report) report ;;
  all)
    failed=()
    "$0" bundles >"$state/bundles.log" 2>&1 &  # on the processor alone, while others use it little
    making=$!
    # a process each: what failed does not keep the rest from being measured
    for name in build check; do "$0" "$name" || failed+=("$name"); done
    wait "$making" || failed+=(bundles)
    cat "$state/bundles.log"
    for name in ceilings time engines; do "$0" "$name" || failed+=("$name"); done
    "$0" report
    if ((${#failed[@]})); then
      echo "FAILED: ${failed[*]}"
      exit 1
    fi
    ;;
  *)
    echo "usage: run.sh [build|check|ceilings|time|bundles|engines|report]" >&2
    exit 2
    ;;
esac
