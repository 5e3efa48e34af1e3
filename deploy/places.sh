# Where deploy/install puts things, for deploy/uninstall to find. Sourced by both.
#
# shellcheck shell=bash disable=SC2034

here=${0##*/}
home=/opt/sockpair
settings=/etc/sockpair
config=$settings/sockpair.toml
unit=/etc/systemd/system/sockpair.service
group=sockpair-admin
accounts=/etc/sysusers.d/sockpair.conf
command=/usr/local/bin/sockpair
samples=/usr/local/share/doc/sockpair
manuals=/usr/local/share/man
completions=(
    bash=/usr/local/share/bash-completion/completions/sockpair
    zsh=/usr/local/share/zsh/site-functions/_sockpair
    fish=/usr/local/share/fish/vendor_completions.d/sockpair.fish
)

say() {
    printf '%s: %s\n' "$here" "$*"
}

fail() {
    printf '%s: %s\n' "$here" "$*" >&2
    exit 1
}

require_root() {
    ((EUID == 0)) || fail "only root may change /opt and /etc; run it with sudo"
}

# Whether a systemd runs that has to be told.
has_systemd() {
    [[ -d /run/systemd/system ]]
}

package_status() {
    dpkg-query --show --showformat='${db:Status-Status}' sockpair 2>/dev/null || true
}

require_no_package() {
    [[ $(package_status) != installed ]] ||
        fail "the Debian package sockpair is installed here; \"apt-get install ./sockpair_*.deb\"" \
            "upgrades it, \"apt-get remove sockpair\" makes room for this script"
}
