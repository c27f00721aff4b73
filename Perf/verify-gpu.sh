#!/usr/bin/env bash
# What a GPU host must show, in one run: verify-gpu.sh BUNDLE_FOLDER OUTPUT_FOLDER PART...
# Parts: doctor tests train virtual strategies sanitizer racecheck memory speed step hostcosts (one GPU), strategies two speed2 step2 (two GPUs: threads, processes, NCCL tests), four (four GPUs: NCCL tests). The bundle is made by Perf/bundle.sh.
# Run from the repository root (its text is the corpus). Prints one PASS or FAIL line per check; exits 1 when one failed.
set -uo pipefail
export TESTINGPLATFORM_TELEMETRY_OPTOUT=1 # costs 10 s per test process on a host without network
bundle=$1; out=$2; shift 2
work=$(mktemp -d)
failed=0
check() { # name, command...
    local name=$1; shift
    local start=$SECONDS
    if "$@" > "$work/log" 2>&1; then echo "PASS $name ($((SECONDS - start)) s)"; else
        failed=1; echo "FAIL $name ($((SECONDS - start)) s)"; tail -n 25 "$work/log"; cat "$work/log" >> "$out/verify.log"; return 1; fi
    cat "$work/log" >> "$out/verify.log"
}
losses() { sed -n 's/.*"loss":\([-0-9.eE+]*\).*/\1/p' "$work/$1/metrics.jsonl" | head -n "${2:-20}"; }
same_losses() { # run, reference, tolerance
    paste <(losses "$1") <(losses "$2") | awk -v t="$3" -v name="$1 against $2" '
        NF == 2 { n++; d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d }
        END { printf "%s %s: largest difference of %d losses %.3g (allowed %g)\n", (n == 20 && worst <= t) ? "PASS" : "FAIL", name, n, worst, t; exit !(n == 20 && worst <= t) }' || failed=1
}
train() { # name, options...
    local name=$1 preset="--preset tiny"; shift
    case " $* " in *" --preset "*) preset="" ;; esac
    check "train $name" "$bundle/lasp" train --data . $preset --steps 60 --stop-after 20 --out "$work/$name" "$@"
}
shards=8 # SanitizerTests deals its rows to as many
sanitize() { # tool, its trait, seconds, options...: all shards side by side; most of the work is the host's
    local tool=$1 trait=$2 seconds=$3; shift 3
    check "every kernel is in the race checks' rows" "$bundle/LaspNative.Tests" --filter-method '*No_kernel_is_left_out' || return
    check "compute-sanitizer $tool" all_shards "$tool" "$trait" "$seconds" "$@"
    grep -hE "ERROR SUMMARY|RACECHECK SUMMARY|total:|succeeded:" "$work/log" | sort | uniq -c
}
all_shards() { # tool, trait, seconds, options...
    local tool=$1 trait=$2 seconds=$3 status=0 pids=() shard; shift 3
    for ((shard = 0; shard < shards; shard++)); do
        timeout "$seconds" compute-sanitizer --tool "$tool" "$@" --error-exitcode 9 --target-processes all \
            "$bundle/LaspNative.Tests" --filter-trait "$trait=$shard" > "$work/$tool.$shard" 2>&1 &
        pids+=($!)
    done
    for ((shard = 0; shard < shards; shard++)); do
        wait "${pids[shard]}" || { status=1; echo "shard $shard ended with $? (124: out of time)"; }
        cat "$work/$tool.$shard"
    done
    return $status
}

for part in "$@"; do
    case $part in
        doctor) check doctor "$bundle/lasp" doctor --json "$out/doctor.json"; cat "$work/log" ;;
        tests) check "GPU tests" "$bundle/LaspNative.Tests" --filter-trait Category=Gpu; grep -E "total:|succeeded:|failed:|skipped:" "$work/log" ;;
        train)
            train cpu-fp32 --device cpu
            train cuda-fp32 --device cuda --dtype fp32
            train cuda-bf16 --device cuda --dtype bf16
            same_losses cuda-fp32 cpu-fp32 1e-3
            same_losses cuda-bf16 cpu-fp32 1e-2 ;;
        virtual)
            train cuda-fp32 --device cuda --dtype fp32
            train cuda-bf16 --device cuda --dtype bf16
            train virtual-fp32 --device cuda --dtype fp32 --virtual-ranks --ranks 4
            train virtual-bf16 --device cuda --dtype bf16 --virtual-ranks --ranks 4
            same_losses virtual-fp32 cuda-fp32 1e-4
            same_losses virtual-bf16 cuda-bf16 5e-3 ;;
        sanitizer) # A kernel's parameters are counted by asking until the driver says CUDA_ERROR_INVALID_VALUE: return codes are not findings.
            sanitize memcheck Memcheck 240 --report-api-errors no ;;
        racecheck) sanitize racecheck Racecheck 240 ;;
        memory) check "200 steps" "$bundle/lasp" train --data . --preset tiny --steps 200 --device cuda --out "$work/steps200"
            cp "$work/steps200/metrics.jsonl" "$out/steps200.jsonl" ;;
        speed) # ceilings, the peer and our kernels on one GPU in one run; LASP_RECORD names an earlier record to compare with
            peer=()
            if python3 -c 'import torch' 2> /dev/null && check "torch SDPA" python3 Perf/peer_sdpa.py "$out/peer.json"; then cat "$work/log"; peer=(--peer "$out/peer.json"); fi
            check "kernels against the floor" "$bundle/LaspNative.Perf" gpu --out "$out/gpu-record.json" "${peer[@]}" ${LASP_RECORD:+--compare "$LASP_RECORD"}; cat "$work/log" ;;
        speed2) check "operators and a layer over two GPUs" "$bundle/LaspNative.Perf" gpu --ranks 2 --out "$out/ranks-record.json"; cat "$work/log" ;;
        step) check "training steps on one GPU" "$bundle/LaspNative.Perf" step --suite one --breakdown --json "$out/step-record.json"; cat "$work/log" ;;
        step2) for suite in two ablation; do check "training steps over two GPUs: $suite" "$bundle/LaspNative.Perf" step --suite $suite --breakdown --json "$out/step-$suite-record.json"; cat "$work/log"; done ;;
        hostcosts) check "host costs" "$bundle/LaspNative.Perf" host --filter '*'; grep -E "^\|" "$work/log" ;;
        strategies) # every strategy trains the same losses: ranks that share one GPU, and with two GPUs over NCCL as threads and as processes
            train one --device cuda --dtype fp32
            train one-hybrid --device cuda --dtype fp32 --preset linear-llama3-1b-hybrid4-test
            gpus=$(nvidia-smi -L | wc -l)
            for strategy in lasp1 lasp2 zeco ring ulysses; do
                train virtual-$strategy --device cuda --dtype fp32 --virtual-ranks --ranks 2 --strategy $strategy
                same_losses virtual-$strategy one 1e-4
                [ "$gpus" -lt 2 ] && continue
                train threads-$strategy --device cuda --dtype fp32 --ranks 2 --strategy $strategy
                same_losses threads-$strategy one 1e-4
                check "train processes-$strategy" "$bundle/lasp" launch --nproc 2 -- train --data . --preset tiny --steps 60 --stop-after 20 --device cuda --dtype fp32 --strategy $strategy --out "$work/processes-$strategy"
                same_losses processes-$strategy one 1e-4
            done
            for strategy in allgather ring zigzag ulysses; do
                train virtual-hybrid-$strategy --device cuda --dtype fp32 --preset linear-llama3-1b-hybrid4-test --virtual-ranks --ranks 2 --softmax-strategy $strategy
                same_losses virtual-hybrid-$strategy one-hybrid 1e-4
                [ "$gpus" -lt 2 ] && continue
                train threads-hybrid-$strategy --device cuda --dtype fp32 --preset linear-llama3-1b-hybrid4-test --ranks 2 --softmax-strategy $strategy
                same_losses threads-hybrid-$strategy one-hybrid 1e-4
            done ;;
        two)
            train one-fp32 --device cuda --dtype fp32
            train one-bf16 --device cuda --dtype bf16
            for dtype in fp32 bf16; do
                train threads-$dtype --device cuda --dtype $dtype --ranks 2
                check "train processes-$dtype" "$bundle/lasp" launch --nproc 2 -- train --data . --preset tiny --steps 60 --stop-after 20 --device cuda --dtype $dtype --out "$work/processes-$dtype"
                tolerance=$([ $dtype = fp32 ] && echo 1e-4 || echo 5e-3)
                same_losses threads-$dtype one-$dtype "$tolerance"
                same_losses processes-$dtype one-$dtype "$tolerance"
            done
            check "NCCL tests" "$bundle/LaspNative.Tests" --filter-trait Category=TwoGpus; grep -E "total:|succeeded:|failed:|skipped:" "$work/log" ;;
        four) # the collectives' rows are those of two GPUs, and of more where there are
            check "NCCL tests of four GPUs" "$bundle/LaspNative.Tests" --filter-trait Category=FourGpus; grep -E "total:|succeeded:|failed:|skipped:" "$work/log"
            check "NCCL collectives of four GPUs" "$bundle/LaspNative.Tests" --filter-class '*Collectives.NcclTests'; grep -E "total:|succeeded:|failed:|skipped:" "$work/log" ;;
        *) echo "unknown part '$part'"; failed=1 ;;
    esac
done
rm -rf "$work"
exit $failed
