"""A pure-userspace TCP/UDP load-balancing proxy for Kubernetes Services.

Data flows one way; pure code decides, effects sit above it and the processes compose both::

    manifests (files) --+                                              control process
    API server (watch) -+-> model --> plan --> DesiredState --> diff --+--> steering  (rules, addresses)
                            pure     pure      frozen                  +--> listeners (sockets) --> ipc --+
                                                                                     fds and Pools by key |
                                                                                                          v
         client == TcpListener == TcpRelay == Backend     <-- balance (pure): which Backend, now   worker process
                   counters, close reasons --> ipc --> control --> /metrics, /healthz, health checks

There are as many workers as ``--workers`` says; with 0 the control process has the engine itself. Control never touches
a client's byte then, and a worker can be killed at any time: control holds the sockets, and so what waits in them.

The words, one per concept:

=================  ====================================================================
ServicePort        one port of one Service, as Kubernetes says it
Endpoint           one IP and port with its conditions, as Kubernetes says it
Backend            an Endpoint this node has decided it may use
Pool               the ordered Backends behind one or more Frontends
Frontend           one address, port and protocol at which a ServicePort is reachable
traffic policy     Cluster or Local: which Endpoints may be reached, for internal or external Frontends
source class       where a client is, as far as policies ask: a pod, the host, or outside
Route              which Pool a client of a Frontend gets, by its source class, or a Verdict
Verdict            reject (nobody answers, anywhere) or drop (the policy keeps the client from those who do)
session affinity   the same client gets the same Backend, for a time
health check       what a load balancer that asks this node about a Service is told
Listener           the live socket, or group of sockets, that serves one or more Frontends
engine             one epoll with all that moves bytes for its listeners, connections and flows
data plane         the engines, as those see them that say what is to be served
worker             a process that has an engine, and does what control says
connection         one accepted TCP client connection
dial               one attempt to connect to a Backend
relay              the live copying between a client and a Backend
flow               the UDP datagrams between one client port and one Backend, with an idle limit
steering           how packets for a Frontend reach a Listener
proxy port         a port of this node to which steering rules lead the packets for some Frontends
Problem            a defect in one API object: collected, never raised
Node               the Node object of the machine this runs on
WatchEvent         what a source says about one object; WatchEvents take effect together
synced             the first complete list has arrived
DesiredState       what should be; the applied state is what is
in force           applied, and steering leads there; what is not yet is pending
reconcile          compute the difference of both and apply it
drain              stop accepting, let relays end until a deadline
CloseReason        who ended a connection, and in which phase
=================  ====================================================================

Imports point down only:
``__main__ > cli > demo > control | worker > sources | steering | dataplane | ipc > telemetry | processes > balance >
plan > config_file > config > model > errors``.
"""

__version__ = "0.1.0+dev"
