# The image of everything but the sidecar. The last stage is the list of what is in it: tests/kube/image assembles the
# lab's image from the same lines, and a test compares the two.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Static, for an image with nothing else in it. Naming the target keeps the flag from build scripts and proc macros.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
 && RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release --package moorline --target "$target" \
 && install -D "target/$target/release/moorline" /out/moorline
# The names by which the one executable knows what it is asked to be. Links of a directory: COPY would follow a link.
RUN mkdir -p /out/links
RUN ln -s moorline /out/links/moorline-agent

FROM scratch
COPY --from=build /out/moorline /moorline
COPY --from=build /out/links/ /
ENV PATH=/
ENTRYPOINT ["/moorline"]
