#!/usr/bin/env bash
# Bundle for GPU hosts without .NET: lasp, the tests and the harness, self-contained for linux-x64, as .bundle/lasp.tar.xz (git-ignored).
# On the GPU host:   mkdir -p /tmp/lasp && tar -xJf .bundle/lasp.tar.xz -C /tmp/lasp && /tmp/lasp/lasp doctor
#                    /tmp/lasp/LaspNative.Tests --filter-trait Category=Gpu        /tmp/lasp/LaspNative.Perf
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
for project in Model/Cli Tests Perf; do
    dotnet publish "$root/$project" -c Release -r linux-x64 --self-contained -p:RunAnalyzers=false -p:GenerateDocumentationFile=false \
        -p:PackAsTool=false --nologo -v quiet -o "$stage"
done
mkdir -p "$root/.bundle"
rm -rf "$stage"/*.pdb "$stage"/runtimes
tar -C "$stage" -cf - . | xz -T0 -6 > "$root/.bundle/lasp.tar.xz"
ls -l "$root/.bundle/lasp.tar.xz" >&2
