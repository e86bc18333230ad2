#!/usr/bin/env bash
# Three regions in containers: started, written to, cut, healed, equal. Needs a Docker engine with
# compose, curl, and the binary: target/release/anabranch, or the path in ANABRANCH_BINARY.
#
# The base image is BASE_IMAGE, if that is set. Otherwise it is made of this machine's own shell and
# libraries, so that no registry is needed; the binary was built against these.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }
fail() { printf 'docker/test.sh: %s\n' "$*" >&2; exit 1; }

command -v docker >/dev/null || fail "there is no docker command; install an engine (Debian: apt-get install docker.io docker-compose)"
docker version >/dev/null 2>&1 || fail "no Docker engine answers: $(docker version 2>&1 >/dev/null | tail -n 1)"
if docker compose version >/dev/null 2>&1; then compose=(docker compose)
elif command -v docker-compose >/dev/null; then compose=(docker-compose)
else fail "there is neither docker compose nor docker-compose"; fi
binary=${ANABRANCH_BINARY:-${CARGO_TARGET_DIR:-target}/release/anabranch}
[ -x "$binary" ] || fail "$binary is missing; build it: cargo build --release --locked -p anabranch-server"

# Names of its own, so that nobody's regions and volumes are touched.
export COMPOSE_PROJECT_NAME=anabranch-test-$$
export ANABRANCH_IMAGE=anabranch-test:$$
export ANABRANCH_EU_PORT=17070 ANABRANCH_US_PORT=17170 ANABRANCH_ASIA_PORT=17270
base=${BASE_IMAGE:-anabranch-test-base:$$}
scratch=$(mktemp -d)
regions=("${compose[@]}" --file docker/compose.yaml)

clean_up() {
  status=$?
  [ $status = 0 ] || "${regions[@]}" logs --tail 20 || true
  "${regions[@]}" down --volumes --timeout 30 >/dev/null 2>&1 || true
  docker image rm "$ANABRANCH_IMAGE" >/dev/null 2>&1 || true
  [ -n "${BASE_IMAGE:-}" ] || docker image rm "$base" >/dev/null 2>&1 || true
  rm -rf "$scratch"
  exit $status
}
trap clean_up EXIT

# Copies programs and the libraries that they need.
make_base() {
  local root=$scratch/root program path
  mkdir -p "$root/bin" "$root/usr" "$root/tmp"
  for program in bash mkdir chown; do
    cp -L "$(command -v "$program")" "$root/bin/$program"
  done
  ln -s bash "$root/bin/sh"
  for program in "$root"/bin/{bash,mkdir,chown} "$binary"; do
    ldd "$program" | grep -o '/[^ ]*' || true
  done | sort -u | while read -r path; do
    mkdir -p "$root$(dirname "$path")"
    cp -L "$path" "$root$path"
  done
  tar -C "$root" -c . | docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' - "$base" >/dev/null
}

if [ -z "${BASE_IMAGE:-}" ]; then say "a base image of this machine's libraries"; make_base; fi
say "the image"
mkdir "$scratch/context"
cp "$binary" "$scratch/context/anabranch"
docker build --file docker/Dockerfile --target prebuilt --build-arg "BASE_IMAGE=$base" \
  --tag "$ANABRANCH_IMAGE" "$scratch/context" >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; fail "the image cannot be built"; }

url() { local port=ANABRANCH_${1^^}_PORT; printf 'http://127.0.0.1:%s' "${!port}"; }
container() { "${regions[@]}" ps --quiet "$1"; }
put() { curl -fsS -X PUT "$(url "$1")/v1/tables/weather/rows/$2" -d "$3" >/dev/null; }
row() { curl -fsS "$(url "$1")/v1/tables/weather/rows/$2" 2>/dev/null || true; }
rows() { curl -fsS "$(url "$1")/v1/tables/weather/rows?limit=1000" || true; }

# eventually WHAT COMMAND…: until it holds, for at most a minute.
eventually() {
  local what=$1 until=$((SECONDS + 60)); shift
  until "$@"; do
    [ $SECONDS -lt $until ] || fail "not within a minute: $what"
    sleep 0.2
  done
  say "$what"
}
healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$(container "$1")")" = healthy ]; }
reads() { [ "$(row "$1" "$2")" = "$3" ]; }
agree() { local first; first=$(rows eu); [ -n "$first" ] && [ "$(rows us)" = "$first" ] && [ "$(rows asia)" = "$first" ]; }

say "three regions"
"${regions[@]}" up --detach --no-build >/dev/null 2>&1
for region in eu us asia; do eventually "$region is healthy" healthy "$region"; done
curl -fsS "$(url eu)/v1/streams" -H 'content-type: application/json' -d '{"name":"weather","merge":"lww"}' >/dev/null
put eu jfk 21
for region in us asia; do eventually "$region reads what eu wrote" reads "$region" jfk 21; done

say "asia is cut off"
links=${COMPOSE_PROJECT_NAME}_links
docker network disconnect "$links" "$(container asia)"
eventually "asia takes a write while it is alone" put asia jfk 30
put eu lga 20
put asia hnd 31
eventually "us reads what eu wrote meanwhile" reads us lga 20
reads asia lga "" || fail "asia should not have lga yet"
reads eu jfk 21 || fail "eu should not have asia's jfk yet"

say "asia is back"
docker network connect --alias asia "$links" "$(container asia)"
eventually "all three hold the same rows" agree
for region in eu us asia; do reads "$region" jfk 30 || fail "$region should have asia's later jfk"; done
say "$(rows eu)"

say "all are stopped, and started again with their volumes"
"${regions[@]}" stop >/dev/null 2>&1
for region in eu us asia; do
  code=$(docker inspect --format '{{.State.ExitCode}}' "$(docker ps --all --quiet --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$region")")
  [ "$code" = 0 ] || fail "$region ended with $code"
done
"${regions[@]}" up --detach --no-build >/dev/null 2>&1
for region in eu us asia; do eventually "$region is healthy again" healthy "$region"; done
put us sfo 15
eventually "asia reads what us wrote" reads asia sfo 15
eventually "all three hold the same rows again" agree
say "passed"
