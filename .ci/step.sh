# Prints what a check does now, and how long each step took.
began=0 name=
# Prints the name of the next step, and the duration of the one before.
step() {
    [ -z "$name" ] || printf '== %s: %d s\n' "$name" "$((SECONDS - began))"
    began=$SECONDS name=$*
    printf '\n== %s\n' "$name"
}
