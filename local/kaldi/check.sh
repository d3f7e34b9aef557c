#!/usr/bin/env bash
# Names what the engine kaldi lacks, before any work: KALDI_ROOT, a script, a program.
help_message="Usage: local/kaldi/check.sh [options] [PATH...]
 e.g.: KALDI_ROOT=~/kaldi local/kaldi/check.sh --nnet3 true
 PATHs must be free of white space and of what a shell reads as more than a letter, which Kaldi's own scripts do not
 bear.
  --gmm true|false        what training a GMM, its graph and its decoding take (default: true)
  --nnet3 true|false      what steps/nnet3 take (default: false)
  --lattices true|false   what --decoder kaldi-lattice takes (default: false)
  --rescore true|false    what rescoring with a larger n-gram takes (default: false)"
gmm=true
nnet3=false
lattices=false
rescore=false
. local/stage.sh || exit 1

how="compile Kaldi (tools/INSTALL, src/INSTALL) and set KALDI_ROOT to it, or leave out --engine kaldi"
[ -n "${KALDI_ROOT:-}" ] || fail "KALDI_ROOT is not set; $how"
for d in steps utils; do
  [ -d "$KALDI_ROOT/egs/wsj/s5/$d" ] || fail "KALDI_ROOT is '$KALDI_ROOT', where there is no egs/wsj/s5/$d; $how"
done
unborne=$'[][:space:]\'"\\$&;|<>()*?#!`{},:[]'
for p in "$PWD" "$KALDI_ROOT" "$@"; do
  if [[ $p =~ $unborne ]]; then
    what=${BASH_REMATCH[0]}
    case $what in [[:space:]]) what='a blank' ;; esac
    fail "'$p' has $what in it, and Kaldi's own scripts do not bear that: choose another place"
  fi
done

need_program() { # FOLDER-OF-src PROGRAM...
  local dir=$1 p
  shift
  for p in "$@"; do
    command -v "$p" >/dev/null ||
      fail "Kaldi's program '$p' is not in $KALDI_ROOT/src/$dir: compile it (make -C $KALDI_ROOT/src/$dir $p)"
  done
}
for p in fstcompile fstarcsort fstconvert fstdraw; do
  command -v "$p" >/dev/null ||
    fail "OpenFst's '$p' is not in $KALDI_ROOT/tools/openfst/bin: make -C $KALDI_ROOT/tools openfst"
done
for p in perl gzip sox; do command -v "$p" >/dev/null || fail "Kaldi's scripts need '$p', which is not installed"; done

need_program bin copy-int-vector copy-matrix copy-post ali-to-pdf ali-to-post ali-to-phones show-transitions
if [ "$gmm" = true ]; then
  need_program featbin compute-mfcc-feats copy-feats compute-cmvn-stats apply-cmvn add-deltas splice-feats \
    transform-feats compose-transforms subset-feats extract-segments feat-to-dim feat-to-len wav-to-duration
  need_program gmmbin gmm-init-mono gmm-init-model gmm-mixup gmm-est gmm-acc-stats-ali gmm-sum-accs gmm-align-compiled \
    gmm-boost-silence gmm-info gmm-acc-mllt gmm-transform-means gmm-est-fmllr gmm-acc-stats-twofeats gmm-post-to-gpost \
    gmm-est-fmllr-gpost gmm-latgen-faster gmm-rescore-lattice
  need_program bin align-equal-compiled compile-train-graphs acc-tree-stats sum-tree-stats cluster-phones \
    compile-questions build-tree convert-ali acc-lda est-lda est-mllt weight-silence-post show-alignments am-info \
    tree-info make-h-transducer add-self-loops
  need_program fstbin fsttablecompose fstdeterminizestar fstminimizeencoded fstcomposecontext fstrmsymbols \
    fstrmepslocal fstisstochastic fstaddselfloops fstpushspecial
  need_program lmbin arpa2fst
fi
if [ "$gmm" = true ] || [ "$lattices" = true ]; then
  need_program latbin lattice-best-path lattice-scale lattice-add-penalty lattice-1best lattice-align-words nbest-to-ctm
fi
if [ "$gmm" = true ]; then need_program latbin lattice-determinize-pruned lattice-to-post; fi
if [ "$lattices" = true ]; then need_program bin latgen-faster-mapped; fi
if [ "$rescore" = true ]; then
  need_program lmbin arpa-to-const-arpa
  need_program latbin lattice-lmrescore lattice-lmrescore-const-arpa
fi
if [ "$nnet3" = true ]; then
  need_program featbin copy-feats feat-to-dim apply-cmvn
  need_program bin tree-info sum-lda-accs matrix-sum-rows vector-sum post-to-tacc copy-matrix copy-vector
  need_program nnet3bin nnet3-init nnet3-info nnet3-copy nnet3-get-egs nnet3-copy-egs nnet3-shuffle-egs \
    nnet3-merge-egs nnet3-subset-egs nnet3-acc-lda-stats nnet3-am-init nnet3-am-copy nnet3-am-info \
    nnet3-am-train-transitions nnet3-train nnet3-compute-prob nnet3-show-progress nnet3-average nnet3-combine \
    nnet3-compute-from-egs nnet3-am-adjust-priors nnet3-compute nnet3-latgen-faster
fi
echo "$0: KALDI_ROOT=$KALDI_ROOT has what is needed"
