# Reads a NoCloud seed: a disk labelled "cidata" with meta-data (JSON or plain YAML) and user-data.
SEED=/run/seed
STATE=/var/lib/cumulet

# The label of an ISO 9660 volume is at byte 32808 (ECMA-119, 8.4.7); upper and lower case both occur.
find_seed_among() {
    for disk; do
        [ -b "$disk" ] || continue
        case $(dd if="$disk" bs=1 skip=32808 count=6 2> /dev/null) in
            cidata | CIDATA) echo "$disk"; return ;;
        esac
    done
    return 1
}

# A virtio disk is the fast way; the drivers of a CD-ROM drive are loaded only when there is none.
find_seed_disk() {
    find_seed_among /dev/vd? && return
    modprobe -a virtio_scsi ata_piix sr_mod 2> /dev/null
    find_seed_among /dev/sr?
}

read_seed() {
    mkdir -p -m 700 "$SEED"
    disk=$(find_seed_disk)
    [ -n "$disk" ] || return 0
    modprobe isofs
    mkdir -p /run/cidata
    if mount -t iso9660 -o ro "$disk" /run/cidata; then
        cp /run/cidata/meta-data /run/cidata/user-data "$SEED" 2> /dev/null
        umount /run/cidata
    fi
}

# Sets HOSTNAME and INSTANCE_ID and writes root's keys. A key that left the seed leaves the guest.
apply_seed() {
    HOSTNAME=cumulet-guest
    INSTANCE_ID=none
    if [ -f "$SEED/meta-data" ]; then
        awk -f /etc/cumulet/meta-data.awk "$SEED/meta-data" > "$SEED/facts"
        : > /root/.ssh/authorized_keys
        while IFS='	' read -r name value; do
            case $name in
                hostname) HOSTNAME=$value ;;
                instance-id) INSTANCE_ID=$value ;;
                key) echo "$value" >> /root/.ssh/authorized_keys ;;
            esac
        done < "$SEED/facts"
    fi
    echo "$HOSTNAME" > /proc/sys/kernel/hostname
    echo "$HOSTNAME" > /etc/hostname
    echo "$HOSTNAME" > /var/www/index.html
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost\n' "$HOSTNAME" > /etc/hosts
    echo "$INSTANCE_ID" > /run/instance-id
    forget_former_instance
}

# A disk that was copied to another instance must not keep the host keys of the first.
forget_former_instance() {
    read -r former < "$STATE/instance-id"
    [ "$former" = "$INSTANCE_ID" ] && return
    rm -f /etc/dropbear/dropbear_*_host_key
    echo "$INSTANCE_ID" > "$STATE/instance-id"
}

# At most once per instance, like cloud-init: the mark is on the disk before the script starts.
run_user_data() {
    [ -s "$SEED/user-data" ] || return 0
    if [ "$(head -c 2 "$SEED/user-data")" != '#!' ]; then
        echo "cumulet-guest: user-data ignored: this image runs scripts that begin with #! only"
        return 0
    fi
    read -r instance_id < /run/instance-id
    if [ "$(cat "$STATE/user-data-ran-for" 2> /dev/null)" = "$instance_id" ]; then
        echo "cumulet-guest: user-data already ran for this instance"
        return 0
    fi
    echo "$instance_id" > "$STATE/user-data-ran-for"
    sync
    chmod 700 "$SEED/user-data"
    read -r interpreter _ < "$SEED/user-data"
    if [ -x "${interpreter#\#!}" ]; then
        (cd /root && "$SEED/user-data")
    else
        (cd /root && sh "$SEED/user-data")
    fi
    echo "cumulet-guest: user-data done exit=$?"
}
