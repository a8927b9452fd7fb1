#!/usr/bin/env bash
# The whole line on the embedded default: procedural objects -> shards -> two students -> numbers,
# an index, a report. No network, no GPU, no display. Run it again to go on where it stopped.
set -euo pipefail
dir=${1:-runs/demo}
count=${2:-2400} # objects; a fifth of them is never trained on
mkdir -p "$dir"
step() { printf '\n== %s\n' "$*" >&2; }

step "1/5 render, encode and sample $count procedural objects"
pipeline embed --dataset procedural --count "$count" --seed 1 --holdout 0.2 \
  --views 6 --image-size 112 --teacher demo --out "$dir/shards"
pipeline inspect "$dir/shards"

step "2/5 train two students on the same data: alignment alone, and with relation distillation"
for arm in align-only mrd; do
  enabled=$([ "$arm" = mrd ] && echo true || echo false)
  if [ -d "$dir/$arm" ]; then
    trainer run --out "$dir/$arm" --resume
  else
    trainer run --shards "$dir/shards" --recipe tiny --out "$dir/$arm" \
      --set "loss.distill.enabled=$enabled"
  fi
done

step "3/5 zero-shot classification and retrieval on the objects that no student has seen"
mkdir -p "$dir/results"
test=(--shards "$dir/shards" --split test)
evaluation zeroshot --teacher-views "${test[@]}" --out "$dir/results/zeroshot-teacher.json" --overwrite
evaluation recall --teacher-views "${test[@]}" --out "$dir/results/recall-teacher.json" --overwrite
for arm in align-only mrd; do
  evaluation zeroshot --checkpoint "$dir/$arm" "${test[@]}" --out "$dir/results/zeroshot-$arm.json" --overwrite
  evaluation recall --checkpoint "$dir/$arm" "${test[@]}" --out "$dir/results/recall-$arm.json" --overwrite
done

step "4/5 an index of the unseen objects, and a search by text"
evaluation encode --checkpoint "$dir/mrd" "${test[@]}" --out "$dir/embeddings.parquet" --overwrite
evaluation index --embeddings "$dir/embeddings.parquet" --shards "$dir/shards" --out "$dir/index" --overwrite
evaluation retrieve --index "$dir/index" --text "a red mug" -k 5

step "5/5 report"
evaluation report "$dir"/results/{zeroshot,recall}-{align-only,mrd,teacher}.json --out "$dir/report.html" --overwrite \
  --title "Demo: procedural objects" \
  --gallery "$dir/index" --shards "$dir/shards" --run "$dir/align-only" --run "$dir/mrd" \
  --query "a red mug" --query "a tall tree" --query "a wooden chair" --query "a blue car" \
  --query "a guitar" --query "a dog"
echo "report: $dir/report.html"
