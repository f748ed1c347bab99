# Reads manifest.json without a JSON parser: emu writes one entry a line. Prints, for each file of
# UNIT (all units without one): its name, its unit and its parameters, the words of one line.
# Usage: awk -f parameters.awk [-v UNIT=mac] manifest.json
function text(line) { sub(/^ *"[a-z]+": "/, "", line); sub(/",?$/, "", line); return line }
/^   "file":/ { file = text($0) }
/^   "unit":/ { unit = text($0) }
/^   "parameters":/ {
  words = $0
  sub(/^[^{]*{/, "", words); sub(/}.*/, "", words)
  gsub(/[" ]/, "", words); gsub(/:/, "=", words); gsub(/,/, " ", words)
}
/^   "cases":/ {
  sub(/^ *"cases": */, ""); sub(/,.*/, "")
  if (UNIT == "" || UNIT == unit) print file, unit, "CASES=" $0, words
}
