// csi-sanity as kubelet would run it: its own tests, against the agent's socket and the controller's, with what kubelet
// adds to every volume of a driver that says podInfoOnMount. One pod for each target path, as it is on a node.
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
)

type outcome struct{ status int }

func (o *outcome) Fail() { o.status = 1 }

func asKubelet(namespace string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if publish, ok := request.(*csi.NodePublishVolumeRequest); ok && publish.VolumeContext != nil {
			pod := fmt.Sprintf("%x", sha256.Sum256([]byte(publish.TargetPath)))
			volume := map[string]string{}
			for key, value := range publish.VolumeContext {
				volume[key] = value
			}
			volume["csi.storage.k8s.io/pod.name"] = "sanity-" + pod[:8]
			volume["csi.storage.k8s.io/pod.namespace"] = namespace
			volume["csi.storage.k8s.io/pod.uid"] = pod[:32]
			volume["csi.storage.k8s.io/ephemeral"] = "false"
			publish.VolumeContext = volume
		}
		return call(ctx, method, request, reply, connection, options...)
	}
}

func main() {
	config := sanity.NewTestConfig()
	flag.StringVar(&config.Address, "node", "", "the agent's socket")
	flag.StringVar(&config.ControllerAddress, "controller", "", "the controller's socket")
	flag.StringVar(&config.TargetPath, "target", "", "a directory for volumes, which is made and removed")
	flag.StringVar(&config.StagingPath, "staging", "", "the same for what is never staged")
	flag.StringVar(&config.TestVolumeParametersFile, "parameters", "", "of a StorageClass, as YAML")
	namespace := flag.String("namespace", "", "of the pods that the volumes are for")
	flag.Parse()
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(asKubelet(*namespace)))
	result := outcome{}
	sanity.Test(&result, config)
	os.Exit(result.status)
}
