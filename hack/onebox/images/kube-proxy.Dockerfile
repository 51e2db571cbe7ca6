# kubeadm's kube-proxy addon runs this as a DaemonSet; mode nftables calls the nft program.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
# netbase is where nft has the names of protocols from. Without it a list says 6 where kube-proxy wrote tcp; once an hour
# and at its start kube-proxy compares the two, takes its own rules for somebody else's, and every Service is gone.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends nftables netbase conntrack kmod \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
COPY --from=tools kube-proxy /usr/local/bin/kube-proxy
