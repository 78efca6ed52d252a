"""What counts as a leftover of kube-proxy's userspace mode in the output of iptables-save, and how it is removed."""

from userspace_proxy.steering.kube_proxy_leftovers import Leftovers, find_leftovers, remove_text

JUMP = '-m comment --comment "handle ClusterIPs; NOTE: -j X" -j KUBE-PORTALS-HOST'
SAVED = f"""
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-PORTALS-HOST - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-PORTALS-HOST - [0:0]
:KUBE-NODEPORT-HOST - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "says -j KUBE-PORTALS-HOST" -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A OUTPUT {JUMP}
-A OUTPUT -g KUBE-NODEPORT-HOST
-A KUBE-SERVICES -j KUBE-PORTALS-HOST
-A KUBE-PORTALS-HOST -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:38383
-A KUBE-PORTALS-HOST -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:38384
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
COMMIT
"""
FOUND = Leftovers({"KUBE-PORTALS-HOST": 2, "KUBE-NODEPORT-HOST": 0}, [f"OUTPUT {JUMP}", "OUTPUT -g KUBE-NODEPORT-HOST"])


def test_chains_of_the_userspace_mode_are_found_with_the_rules_of_built_in_chains_that_lead_there() -> None:
    """Only by their full names and in their own tables; what a comment says leads nowhere."""
    assert find_leftovers(SAVED) == {"nat": FOUND}


def test_removal_names_nothing_else() -> None:
    """Chains are emptied, nothing leads to them any more, and so they can go."""
    assert remove_text("nat", FOUND) == (
        "*nat\n:KUBE-PORTALS-HOST - [0:0]\n:KUBE-NODEPORT-HOST - [0:0]\n"
        f"-D OUTPUT {JUMP}\n-D OUTPUT -g KUBE-NODEPORT-HOST\n"
        "-X KUBE-PORTALS-HOST\n-X KUBE-NODEPORT-HOST\nCOMMIT\n"
    )
