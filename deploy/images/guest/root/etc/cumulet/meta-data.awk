# Prints "hostname", "instance-id" and "key" lines (tab, value) from a NoCloud meta-data file.
# JSON in any layout, or the YAML that people write by hand: "name: value" and "- item".

function emit(name, value) {
    gsub(/_/, "-", name)
    if ((name == "local-hostname" || name == "hostname") && value ~ /^[A-Za-z0-9][A-Za-z0-9.-]*$/) {
        # local-hostname wins over hostname, wherever it stands.
        if (hostname == "" || name == "local-hostname") hostname = value
    } else if (name == "instance-id") {
        instance = value
    } else if (name == "public-keys" && value ~ /^(ssh-|ecdsa-|sk-)/) {
        print "key\t" value
    }
}

function json(text,    i, c, quoted, escaped, depth, word, pending) {
    for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (quoted) {
            if (escaped) { word = word c; escaped = 0 }
            else if (c == "\\") escaped = 1
            else if (c == "\"") { quoted = 0; pending = 1 }
            else word = word c
        } else if (c == "\"") { quoted = 1; word = "" }
        else if (c == ":") { if (depth == 1) field = word; pending = 0 }
        else if (c ~ /[][{},]/) {
            # A nested value counts for public-keys only: no other field that is read here is nested.
            if (pending && (depth == 1 || field ~ /^public[-_]keys$/)) emit(field, word)
            pending = 0
            if (c == "{" || c == "[") depth++
            if (c == "}" || c == "]") depth--
        }
    }
}

function yaml(text,    lines, count, i, line, at) {
    count = split(text, lines, "\n")
    for (i = 1; i <= count; i++) {
        line = lines[i]
        sub(/[ \t\r]+$/, "", line)
        if (line ~ /^[ \t]*- /) { sub(/^[ \t]*- +/, "", line); emit(field, unquoted(line)) }
        else if (line ~ /^[A-Za-z_-]+:/) {
            at = index(line, ":")
            field = substr(line, 1, at - 1)
            sub(/^[ \t]+/, "", line)
            line = substr(line, at + 1)
            sub(/^[ \t]+/, "", line)
            if (line != "") emit(field, unquoted(line))
        }
    }
}

function unquoted(value) {
    if (value ~ /^".*"$/ || value ~ /^'.*'$/) return substr(value, 2, length(value) - 2)
    return value
}

{ text = text $0 "\n" }

END {
    if (text ~ /^[ \t\r\n]*\{/) json(text); else yaml(text)
    if (hostname != "") print "hostname\t" hostname
    if (instance != "") print "instance-id\t" instance
}
