#!/usr/bin/env bash
# The same line on a folder of real meshes. What is measured: does the name of an object, typed as
# a text, find its mesh among those that no student has seen?
set -euo pipefail
assets=$1
dir=${2:-runs/demo-assets}
mkdir -p "$dir/results"
step() { printf '\n== %s\n' "$*" >&2; }

step "1/4 render, encode and sample every mesh under $assets"
pipeline embed --dataset folder --root "$assets" --holdout 0.2 \
  --views 12 --image-size 224 --teacher demo --out "$dir/shards"
pipeline inspect "$dir/shards"

step "2/4 train two students"
for arm in align-only mrd; do
  enabled=$([ "$arm" = mrd ] && echo true || echo false)
  if [ -d "$dir/$arm" ]; then
    trainer run --out "$dir/$arm" --resume
  else
    trainer run --shards "$dir/shards" --recipe tiny --out "$dir/$arm" \
      --set "loss.distill.enabled=$enabled"
  fi
done

step "3/4 retrieval by name on the meshes that no student has seen"
test=(--shards "$dir/shards" --split test)
evaluation recall --teacher-views "${test[@]}" --texts name --out "$dir/results/recall-teacher.json" --overwrite
for arm in align-only mrd; do
  evaluation recall --checkpoint "$dir/$arm" "${test[@]}" --texts name \
    --out "$dir/results/recall-$arm.json" --overwrite
done

step "4/4 an index of every mesh, and a report"
evaluation encode --checkpoint "$dir/mrd" --shards "$dir/shards" --out "$dir/embeddings.parquet" --overwrite
evaluation index --embeddings "$dir/embeddings.parquet" --shards "$dir/shards" --out "$dir/index" --overwrite
evaluation report "$dir"/results/recall-{align-only,mrd,teacher}.json --out "$dir/report.html" --overwrite \
  --title "Demo: real meshes" \
  --gallery "$dir/index" --shards "$dir/shards" --run "$dir/align-only" --run "$dir/mrd" \
  --query "a bottle" --query "a hammer" --query "a tree" --query "a car" --query "a chair"
echo "report: $dir/report.html"
