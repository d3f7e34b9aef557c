#!/usr/bin/env bash
# Decodes a student of train_student.sh as steps/nnet3/decode.sh does an nnet3 model: lattices, and
# local/score.sh on them.
if [ -n "${BASH_VERSION:-}" ]; then set +o posix; else exec bash "$0" "$@"; fi
help_message="Usage: ESSENCE/recipes/plugin/decode_student.sh [options] GRAPH DATA DIR/decode_NAME
 e.g. (in egs/X/s5): ESSENCE/recipes/plugin/decode_student.sh --cmd \"\$decode_cmd\" --nj 30 \\
        exp/tri3/graph_tgsmall data/dev_hires exp/student/decode_dev
 GRAPH: made by utils/mkgraph.sh for the tree of the student's alignments; DIR: of the student
 DIR/decode_NAME gets lat.*.gz and what local/score.sh makes of them; logs: DIR/decode_NAME/log
  --nj N                          jobs, at most as many as there are speakers (default: 4)
  --cmd COMMAND                   how they run (default: run.pl where it is found, else on this machine)
  --acwt X                        acoustic scale in the search (default: 0.1 per frame of 10 ms)
  --beam X, --lattice-beam X      (default: 15, 8)
  --max-active N, --min-active N  (default: 7000, 200)
  --skip-scoring true|false       (default: false)
  --scoring-opts 'OPTIONS'        of local/score.sh"
nj=4
cmd=
acwt=
beam=15.0
lattice_beam=8.0
max_active=7000
min_active=200
skip_scoring=false
scoring_opts=
# shellcheck source=recipes/plugin/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -eq 3 ] || usage
graph=$1 data=$2 dir=$3
student=$(dirname "$dir")
files "$graph"/{HCLG.fst,words.txt} "$data"/{feats.scp,utt2spk} "$student"/{final.pt,model.yaml}
[ -f "$student/final.mdl" ] ||
  fail "$student has no final.mdl, Kaldi's transition model: the alignments that it was trained on were not Kaldi's"
if [ "$skip_scoring" = false ]; then
  files "$data/text"
  [ -x local/score.sh ] || fail "there is no local/score.sh here to score with: give --skip-scoring true"
fi
program latgen-faster-mapped lattice-scale subsample-feats
pdfs=$(awk '/^num_pdfs:/ { print $2 }' "$student/model.yaml")
known=$(cat "$graph/num_pdfs" 2>/dev/null || echo "$pdfs")
[ "$known" = "$pdfs" ] ||
  fail "$graph is a graph for $known pdfs, $student has $pdfs: make one for the tree of its alignments"
default_cmd

# Rows of 30 ms go into a graph of that rate (frame_subsampling_factor, as in nnet3 directories) with three times the
# weight of a frame, and the lattices keep it; into a graph of 10 ms each goes three times.
factor=$(essence get "$student/model.yaml" frame_subsampling_factor)
whole_number "$factor" "frame_subsampling_factor of $student/model.yaml"
repeat='' scale=''
if [ -f "$student/frame_subsampling_factor" ]; then
  scale=$factor
  acwt=${acwt:-$(awk -v n="$factor" 'BEGIN { print 0.1 * n }')}
elif [ "$factor" -gt 1 ]; then
  repeat="subsample-feats --n=-$factor ark:- ark:- |"
fi
mkdir -p "$dir/log"
dir=$(cd -P "$dir" && pwd)
rm -rf "$dir"/jobs "$dir"/lat.*.gz
mkdir "$dir/jobs"
nj=$(parts "$nj" "$data/feats.scp" "$dir/jobs/feats" "$data/utt2spk")  # means are taken off speaker by speaker
echo "$nj" >"$dir/num_jobs"
for ((j = 1; j <= nj; j++)); do
  mkdir "$dir/jobs/$j"
  mv "$dir/jobs/feats.$j" "$dir/jobs/$j/feats.scp"
  only "$dir/jobs/$j/feats.scp" "$data/utt2spk" >"$dir/jobs/$j/utt2spk"
  lattices="ark:| ${scale:+lattice-scale --acoustic-scale=$scale ark:- ark:- |} gzip -c >$(sh_quoted "$dir/lat.$j.gz")"
  job_script "$dir/jobs/$j.sh" '' "$(quoted essence forward "$student" "$dir/jobs/$j" ark:-) | $repeat $(quoted \
    latgen-faster-mapped --acoustic-scale="${acwt:-0.1}" --beam="$beam" --lattice-beam="$lattice_beam" \
    --max-active="$max_active" --min-active="$min_active" --allow-partial=true --word-symbol-table="$graph/words.txt" \
    "$student/final.mdl" "$graph/HCLG.fst" ark:- "$lattices")"
done
# shellcheck disable=SC2086  # cmd is words
$cmd JOB=1:"$nj" "$dir/log/decode.JOB.log" bash "$dir/jobs/JOB.sh" ||
  fail "decoding failed; logs: $dir/log/decode.*.log"
in=$(wc -l <"$data/feats.scp")
n=$(sed -n 's/^LOG .* Done \([0-9]*\) utterances, failed for .*/\1/p' "$dir"/log/decode.*.log |
  awk '{ n += $1 } END { print n + 0 }')
[ $((100 * n)) -ge $((95 * in)) ] || fail "lattices of $n of the $in utterances of $data; logs: $dir/log/decode.*.log"
rm -rf "$dir/jobs"
if [ "$skip_scoring" = false ]; then
  # shellcheck disable=SC2086  # scoring_opts are words
  local/score.sh $scoring_opts --cmd "$cmd" "$data" "$graph" "$dir"
fi
echo "$0: lattices of $n of $in utterances are in $dir"
