#!/usr/bin/env bash
# Fetches NVRTC for the kernel check into the git-ignored .nvrtc/ and prints the path of the library, for LASP_NVRTC. Installs nothing and needs no root.
# It comes from Debian's non-free component, from the mirror that this machine's own package sources name.
# Exit status: 0 it is there; 75 it cannot be fetched here (no apt-get, no Debian source, mirror out of reach); 1 anything else.
set -euo pipefail

unavailable() {
    echo "KERNELS NOT CHECKED: NVRTC cannot be fetched: $1" >&2
    exit 75
}

cd "$(dirname "$0")/.."
folder=$PWD/.nvrtc
library=$folder/root/usr/lib/x86_64-linux-gnu/libnvrtc.so.12
if [ -e "$library" ]; then
    echo "$library"
    exit 0
fi

command -v apt-get > /dev/null || unavailable "there is no apt-get"
command -v dpkg > /dev/null || unavailable "there is no dpkg"
source=/etc/apt/sources.list.d/debian.sources
[ -r "$source" ] || unavailable "there is no $source"

rm -rf "$folder"
mkdir -p "$folder"/{lists/partial,cache/archives/partial,parts,unpacked}
sed -n '1,/^$/p' "$source" | sed -e 's/^Suites:.*/Suites: trixie/' -e 's/^Components:.*/Components: non-free/' > "$folder/parts/non-free.sources"
apt=(apt-get -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$folder/parts" -o Dir::State::Lists="$folder/lists" -o Dir::Cache="$folder/cache")
"${apt[@]}" update -o APT::Update::Error-Mode=any >&2 || unavailable "the Debian mirror does not answer"
cd "$folder"
"${apt[@]}" download libnvrtc12 libnvrtc-builtins12.4 >&2 || unavailable "the Debian mirror does not serve libnvrtc12"
for package in ./*.deb; do dpkg -x "$package" unpacked; done
mv unpacked root
rm -rf lists cache parts ./*.deb
[ -e "$library" ] || unavailable "the packages hold no $(basename "$library")"
echo "$library"
