# kubeadm's kube-proxy addon runs this as a DaemonSet; mode nftables calls the nft program.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends nftables conntrack kmod \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
COPY --from=tools kube-proxy /usr/local/bin/kube-proxy
