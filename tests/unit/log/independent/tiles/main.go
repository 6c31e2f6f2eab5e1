// SPDX-License-Identifier: Apache-2.0

// A tree read from tiles by golang.org/x/mod/sumdb/tlog: one JSON request on stdin, one JSON answer on stdout.
//
// TileHashReader is said to prove every tile before it gives a hash of it. Older ones leave some out (they count the tree's
// subtrees where they mean tiles), so here the tree is also built again from the leaves that were read, and every tile
// compared with that.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

type request struct {
	Log  string
	Size int64
	Root tlog.Hash
	Old  int64
}

type answer struct {
	Tiles     []string // that a tree of this size has: those full, and the widest partial ones
	Root      tlog.Hash
	Leaves    []tlog.Hash
	TreeProof tlog.TreeProof // from Old to Size
	Error     string
}

// The names of sumdb have the height in them: tile/8/0/000, where tlog-tiles has tile/0/000.
func name(tile tlog.Tile) string {
	return strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
}

type folder string

func (f folder) Height() int { return height }

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(filepath.Join(string(f), name(tile)))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func (f folder) read(asked request) (given answer, err error) {
	last := map[[2]int64]tlog.Tile{}
	for _, tile := range tlog.NewTiles(height, 0, asked.Size) {
		last[[2]int64{int64(tile.L), tile.N}] = tile
	}
	for _, tile := range last {
		given.Tiles = append(given.Tiles, name(tile))
	}
	reader := tlog.TileHashReader(tlog.Tree{N: asked.Size, Hash: asked.Root}, f)
	if given.Root, err = tlog.TreeHash(asked.Size, reader); err != nil {
		return given, err
	}
	indexes := make([]int64, asked.Size)
	for n := range indexes {
		indexes[n] = tlog.StoredHashIndex(0, int64(n))
	}
	if given.Leaves, err = reader.ReadHashes(indexes); err != nil {
		return given, err
	}
	if err = f.compare(asked, given.Leaves, last); err != nil {
		return given, err
	}
	given.TreeProof, err = tlog.ProveTree(asked.Size, asked.Old, reader)
	return given, err
}

type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		found[i] = s[index]
	}
	return found, nil
}

func (f folder) compare(asked request, leaves []tlog.Hash, tiles map[[2]int64]tlog.Tile) error {
	var hashes stored
	for n, leaf := range leaves {
		added, err := tlog.StoredHashesForRecordHash(int64(n), leaf, hashes)
		if err != nil {
			return err
		}
		hashes = append(hashes, added...)
	}
	root, err := tlog.TreeHash(asked.Size, hashes)
	if err != nil {
		return err
	}
	if root != asked.Root {
		return fmt.Errorf("the leaves are of another tree")
	}
	for _, tile := range tiles {
		expected, err := tlog.ReadTileData(tile, hashes)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(filepath.Join(string(f), name(tile)))
		if err != nil {
			return err
		}
		if !bytes.Equal(data, expected) {
			return fmt.Errorf("%s differs", name(tile))
		}
	}
	return nil
}

func main() {
	var asked request
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		log.Fatal(err)
	}
	given, err := folder(asked.Log).read(asked)
	if err != nil {
		given.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(given); err != nil {
		log.Fatal(err)
	}
}
