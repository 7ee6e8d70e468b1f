#!/usr/bin/env bash
# The bundled model trained on, in some minutes of one GPU: scenes, latents, training, evaluation. Run it again after an
# interruption: every part goes on where it stood, and training has its minutes anew.
#
#   SCENES=30000 MINUTES=4 configs/scenes64_gpu.sh --data.batch_size 2048
#   SEED=16 MINUTES=3 configs/scenes64_gpu.sh --model.pretrained scenes64 --data.batch_size 512 --objective.draws_per_sample 4
#
# The second goes on from the bundled model, on scenes that it has not seen. A core reads 500 samples with their prompts a second, so
# 14 of them 7,000; four draws of a sample cost its reading once: an H200 takes 5.2 such steps a second, 10,700 draws, after a minute
# in which the blocks are compiled.
# SCENES  training scenes; 13 cores render 110 a second. SEED  of them. MINUTES  of training; the learning rate decays over the last 30%
# of them (optimizer.decay_by time).
# HELD_OUT  scenes for the evaluation. DATA, RUN  folders. Arguments are options of `mmdit train`.
set -euo pipefail

workers=$(nproc)
scenes=${SCENES:-30000} seed=${SEED:-0} minutes=${MINUTES:-4} held_out=${HELD_OUT:-256} data=${DATA:-data/scenes64_gpu} run=${RUN:-runs/scenes64_gpu}
mmdit="python -m mmdit.cli.main"

$mmdit data render --output "$data" --composition mixed --seed "$seed" --num_samples "$scenes"
$mmdit data render --output "$data" --composition mixed --seed "$seed" --num_samples "$held_out" --split test
$mmdit data encode --data "$data" --splits '[train]' --output "${data}_latents" --vae scenes64 --depth_space depth \
  --depth_quantiles '[0, 1]' --mirrored false --num_workers "$workers" --batch_size 256

if [ ! -e "$run/pipeline" ]; then
  hours=$(python -c "print($minutes / 60)")
  $mmdit train --config configs/scenes64_gpu.yaml --prompts.path "$data" --data.path "${data}_latents" --output "$run" --resume auto \
    "$@" --trainer.max_hours "$hours"
fi

$mmdit evaluate --model "$run/pipeline" --data "$data" --split test --num_prompts 96 --output "$run/report.json"
