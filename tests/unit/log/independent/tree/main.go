// SPDX-License-Identifier: Apache-2.0

// Trees and proofs as golang.org/x/mod/sumdb/tlog has them: one JSON request on stdin, one JSON answer on stdout.
package main

import (
	"encoding/json"
	"log"
	"os"

	"golang.org/x/mod/sumdb/tlog"
)

type recordCheck struct {
	Proof tlog.RecordProof
	Size  int64
	Root  tlog.Hash
	Index int64
	Leaf  tlog.Hash
}

type treeCheck struct {
	Proof   tlog.TreeProof
	New     int64
	NewRoot tlog.Hash
	Old     int64
	OldRoot tlog.Hash
}

type request struct {
	Records      [][]byte
	RecordProofs [][2]int64 // index, size
	TreeProofs   [][2]int64 // old, new
	RecordChecks []recordCheck
	TreeChecks   []treeCheck
}

type answer struct {
	Roots        []tlog.Hash // of the trees of 1, 2, ... records
	RecordProofs []tlog.RecordProof
	TreeProofs   []tlog.TreeProof
	RecordChecks []bool
	TreeChecks   []bool
}

type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		found[i] = s[index]
	}
	return found, nil
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	var asked request
	must(json.NewDecoder(os.Stdin).Decode(&asked))
	var given answer
	var hashes stored
	for n, record := range asked.Records {
		added, err := tlog.StoredHashes(int64(n), record, hashes)
		must(err)
		hashes = append(hashes, added...)
		root, err := tlog.TreeHash(int64(n+1), hashes)
		must(err)
		given.Roots = append(given.Roots, root)
	}
	for _, pair := range asked.RecordProofs {
		proof, err := tlog.ProveRecord(pair[1], pair[0], hashes)
		must(err)
		given.RecordProofs = append(given.RecordProofs, proof)
	}
	for _, pair := range asked.TreeProofs {
		proof, err := tlog.ProveTree(pair[1], pair[0], hashes)
		must(err)
		given.TreeProofs = append(given.TreeProofs, proof)
	}
	for _, c := range asked.RecordChecks {
		err := tlog.CheckRecord(c.Proof, c.Size, c.Root, c.Index, c.Leaf)
		given.RecordChecks = append(given.RecordChecks, err == nil)
	}
	for _, c := range asked.TreeChecks {
		err := tlog.CheckTree(c.Proof, c.New, c.NewRoot, c.Old, c.OldRoot)
		given.TreeChecks = append(given.TreeChecks, err == nil)
	}
	must(json.NewEncoder(os.Stdout).Encode(given))
}
