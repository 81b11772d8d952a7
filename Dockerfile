# livebridge in a small image. Needs BuildKit (the default since Docker 23; before that: DOCKER_BUILDKIT=1).
#   docker build -t livebridge .
#   docker run --rm -p 127.0.0.1:8000:8000 -e LIVEBRIDGE_PUBLISH_KEY livebridge

FROM rust:slim-bookworm AS build
WORKDIR /src
COPY . .
ENV CARGO_TARGET_DIR=/target CARGO_PROFILE_RELEASE_STRIP=symbols
# The cache mounts keep the downloaded and the compiled dependencies from one build to the next. Cargo goes by
# modification times, and those of another checkout may be older than its last build: touched, they are always newer.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/target,id=livebridge-target,sharing=locked \
    find . -type f -exec touch {} + \
    && cargo build --release --locked --bin livebridge \
    && cp /target/release/livebridge /livebridge

FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /livebridge /usr/local/bin/livebridge
# Where livebridge looks for an optional livebridge.toml: mount yours here.
WORKDIR /etc/livebridge
# A container's own loopback reaches nobody; what is reachable from outside is decided when the port is published. Hence it
# asks for a key (docs/access.md), or for LIVEBRIDGE_INSECURE=true where the port is published to nobody else.
ENV LISTEN=0.0.0.0:8000
EXPOSE 8000
# A number, so that "must not run as root" can be checked without reading the image's /etc/passwd.
USER 10001:10001
STOPSIGNAL SIGTERM
# Asks /readyz, so 'healthy' means: serves, and its Redis answers.
HEALTHCHECK --interval=5s --timeout=3s --start-period=15s --retries=3 \
    CMD ["/usr/local/bin/livebridge", "check", "--url", "http://127.0.0.1:8000"]
ENTRYPOINT ["/usr/local/bin/livebridge"]
