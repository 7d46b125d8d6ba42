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
  timeout "${LIMIT:-290}" "$@" >"$out/$name.$what.txt" 2>&1
  echo "   exit $?, $out/$name.$what.txt"
}
# `carried/` is not in the repository: the training images as docs/pretraining.md names them in `carried/images`, and in
# `carried/site` what this python lacks (pip install --target carried/site --no-deps lightly tensorboardX). Where it is, the nine
# micro encoders are pretrained first; a run that meets its time limit keeps its checkpoint, and the next call goes on.
export PYTHONPATH=.:carried/site EVALKIT_CACHE=${EVALKIT_CACHE:-$(mktemp -d)}
if [ -d carried/images ]; then
  images=carried/images
  data=(--data "$images/cifar10.zip" --data "$images/pretrain_mix.zip" --data "$images/ccp/photos:02[0-9][1-9].jpg"
        --data "$images/ccp/photos:02[1-9]0.jpg" --data "$images/ccp/photos:03*.jpg" --data "$images/ccp/photos:0400.jpg"
        --data "$images/coco_mini_cc")
  for method in ${METHODS:-mugs mgc mmc selfpatch dino ibot moco_v3 mae cae}; do
    resume=(); [ -f "pretrained/$method/checkpoint.pt" ] && resume=(--resume)
    LIMIT=${SECONDS_EACH:-120} step "pretrain-$method" "$python" -m evalkit.cli.main pretrain "$method" --preset micro "${data[@]}" \
      --out "pretrained/$method" "${resume[@]}" --device cuda --set "run.epochs=${EPOCHS:-12}" --set run.warmup=0.5 --set run.batch=512 --probe-epochs 4
    mkdir -p "$out/pretrained/$method"
    cp "pretrained/$method/"*.csv "pretrained/$method/"encoder.* "$out/pretrained/$method/"
  done
fi
step pretrain-speed       "$python" bench/pretrain.py --device cuda
step pretrain-speed-large "$python" bench/pretrain.py --device cuda --large
step parity   "$python" bench/gpu_parity.py
step tests    "$python" -m pytest -q -p no:cacheprovider tests/adapters tests/features tests/runners tests/pretrain
step extraction "$python" bench/extraction.py --device cuda
step encode     "$python" bench/encode.py --device cuda
step segmentation "$python" bench/segmentation.py --device cuda
step demo     "$python" -m evalkit.cli.main eval shipped --suite mini --device cuda --out "$(mktemp -d)"
for patch in 16 8; do step "video-$patch" "$python" bench/video.py --gpu --patch "$patch"; done
