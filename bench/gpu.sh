#!/usr/bin/env bash
# Everything that waits for a GPU, the most valuable first, each step under five minutes; results into bench/results/.
# usage: bench/gpu.sh [PYTHON]    Nothing here has been run on a GPU yet.
set -u
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
out=bench/results
mkdir -p "$out"
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))') || { echo "no GPU"; exit 1; }
step() { # step NAME COMMAND...
  local what=$1; shift
  echo "== $what"
  timeout 290 "$@" >"$out/$name.$what.txt" 2>&1
  echo "   exit $?, $out/$name.$what.txt"
}
# `carried/` is not in the repository: training images in `carried/images` (folders or zips), and in `carried/site` what this
# python lacks (pip install --target carried/site lightly). Where it is, the micro encoder is pretrained in four minutes.
if [ -d carried/images ]; then
  data=(); for source in carried/images/*; do data+=(--data "$source"); done
  step pretrain env PYTHONPATH=.:carried/site "$python" -m evalkit.pretrain "${data[@]}" --out "$out/pretrain" --device cuda \
    --steps "${STEPS:-6000}" --batch 512 --windows 300 --local-crops 4 --global-size 64
  mv "$out/pretrain/teacher.safetensors" "$out/pretrain/log.csv" "$out/" && rm -r "$out/pretrain"
fi
step parity   env PYTHONPATH=. "$python" bench/gpu_parity.py
step tests    env PYTHONPATH=. "$python" -m pytest -q -p no:cacheprovider tests/adapters tests/features tests/runners
step extraction env PYTHONPATH=. "$python" bench/extraction.py --device cuda
step encode     env PYTHONPATH=. "$python" bench/encode.py --device cuda
step segmentation env PYTHONPATH=. "$python" bench/segmentation.py --device cuda
step demo     env PYTHONPATH=. EVALKIT_CACHE=$(mktemp -d) "$python" -m evalkit.cli.main eval shipped --suite mini --device cuda --out "$(mktemp -d)"
for patch in 16 8; do step "video-$patch" env PYTHONPATH=. "$python" bench/video.py --gpu --patch "$patch"; done
