module cria.tests/tools/cri-tools

go 1.26.2

require sigs.k8s.io/cri-tools v1.36.0

require github.com/onsi/ginkgo/v2 v2.28.1 // indirect
