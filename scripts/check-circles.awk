# Prints each circle of modules in the given files; see scripts/check-layers.
# usage: awk -v root=src [-v except=MODULE::] -f scripts/check-circles.awk FILE...
#
# Reads the paths that begin with `crate::`, `super::` or `self::`, in `use` declarations and in
# expressions. Comments and `#[cfg(test)] mod` at the end of a file do not count.

# The module of a file: src/hub/topic.rs is hub::topic, src/lib.rs is the empty name.
function module_of(file) {
  sub("^" root "/", "", file)
  sub(/\.rs$/, "", file)
  gsub("/", "::", file)
  return file == "lib" || file == "main" ? "" : file
}

function parent(module) { return sub(/::[^:]*$/, "", module) ? module : "" }

# Expands a{b,c::{d}} into one path for each leaf, and records each.
function expand(path,    open, i, depth, start, head, char) {
  open = index(path, "{")
  if (!open) { record(path); return }
  head = substr(path, 1, open - 1)
  depth = 0; start = open + 1
  for (i = open; i <= length(path); i++) {
    char = substr(path, i, 1)
    if (char == "{") depth++
    if ((char == "," && depth == 1) || (char == "}" && depth == 1)) {
      if (i > start) expand(head substr(path, start, i - start))
      start = i + 1
    }
    if (char == "}") depth--
    if (depth == 0) break
  }
}

function record(path,    base) {
  base = module
  if (path ~ /^crate::/) { base = ""; sub(/^crate::/, "", path) }
  else if (path ~ /^self::/) sub(/^self::/, "", path)
  while (path ~ /^super::/) { base = parent(base); sub(/^super::/, "", path) }
  sub(/::(self|\*)$/, "", path)
  uses[++count] = module SUBSEP (base == "" ? path : base "::" path)
}

FNR == 1 { module = module_of(FILENAME); known[module] = 1; skip = pending = 0; text = "" }
/^#\[cfg\((all\()?test/ { pending = 1; next }
pending && /^(pub(\([a-z]+\))? )?mod [a-z_]+( \{|;)/ { pending = 0; if (/\{/) skip = 1; next }
pending { pending = 0 }
skip { next }
{
  line = $0
  sub(/^[ \t]*\/\/.*/, "", line)
  sub(/ \/\/ .*/, "", line)
  # A use declaration over several lines is read as one.
  if (text != "" || line ~ /^[ \t]*(pub(\([a-z]+\))? )?use .*\{[^}]*$/) {
    text = text line
    if (line !~ /;/) next
    line = text; text = ""
  }
  if (line ~ /^[ \t]*(pub(\([a-z]+\))? )?use /) {
    sub(/^[ \t]*(pub(\([a-z]+\))? )?use /, "", line); sub(/;.*/, "", line); gsub(/[ \t]/, "", line)
    gsub(/as[A-Z_][A-Za-z_]*/, "", line)
    if (line ~ /^(crate|super|self)::/) expand(line)
    next
  }
  while (match(line, /(crate|super|self)::[A-Za-z_:]+/)) {
    path = substr(line, RSTART, RLENGTH)
    line = substr(line, RSTART + RLENGTH)
    sub(/:+$/, "", path)
    record(path)
  }
}

# A use counts between the parts below the nearest common ancestor: the ancestor's own file, or one of
# its children with everything below it.
function edge(from, to,    a, b, n, m, i, common, x, y) {
  n = split(from, a, "::"); m = split(to, b, "::")
  common = ""
  for (i = 1; i <= n && i <= m && a[i] == b[i]; i++) common = common (i > 1 ? "::" : "") a[i]
  x = i > n ? "(" common ")" : (common == "" ? "" : common "::") a[i]
  y = i > m ? "(" common ")" : (common == "" ? "" : common "::") b[i]
  if (!((x, y) in why)) { why[x, y] = from " -> " to; next_of[x] = next_of[x] " " y; nodes[x] = 1 }
}

function visit(node, path,    list, n, i) {
  state[node] = 1
  n = split(next_of[node], list, " ")
  for (i = 1; i <= n; i++) {
    if (state[list[i]] == 1) report(path " " node, list[i])
    else if (!state[list[i]]) visit(list[i], path " " node)
  }
  state[node] = 2
}

function report(path, again,    list, n, i, inside, text) {
  n = split(path, list, " ")
  for (i = 1; i <= n; i++) {
    if (list[i] == again) inside = 1
    if (inside) text = text "\n    " why[list[i], i < n ? list[i + 1] : again]
  }
  print "circle:" text
  failed = 1
}

END {
  for (i = 1; i <= count; i++) {
    split(uses[i], pair, SUBSEP)
    to = pair[2]
    while (to != "" && !(to in known)) to = parent(to)
    if (except != "" && index(to, except) == 1 && index(pair[1], except) == 1) continue
    if (to != "" && to != pair[1] && pair[1] != "") edge(pair[1], to)
  }
  for (node in nodes) if (!state[node]) visit(node, "")
  exit failed
}
